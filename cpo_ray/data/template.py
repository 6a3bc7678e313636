"""From instruction and context to the prompt."""

import re

from cpo_ray.errors import ConfigError

PLACEHOLDER = re.compile(r"\{(instruction|context)\}")


def check_template(template: str) -> None:
    """Raise ConfigError where a row without context would lose its instruction."""
    for line in template.splitlines():
        if "{instruction}" in line and "{context}" in line:
            raise ConfigError(
                f"data.template: {{instruction}} and {{context}} share the line {line!r}, which a row without context "
                "loses. Put them on lines of their own."
            )


def apply_template(template: str, instruction: str, context: str) -> str:
    """The prompt. Without context the template's lines that hold `{context}` fall away.

    Only the template is searched for placeholders, in one pass: braces in a text stay as they are.
    """
    if not context:
        template = "".join(line for line in template.splitlines(keepends=True) if "{context}" not in line)
    texts = {"instruction": instruction, "context": context}
    return PLACEHOLDER.sub(lambda match: texts[match[1]], template)
