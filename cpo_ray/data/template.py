"""The prompt template: fills in instruction and context."""

import re

from cpo_ray.errors import ConfigError

PLACEHOLDER = re.compile(r"\{(instruction|context)\}")


def check_template(template: str) -> None:
    """Raise ConfigError if a row without context would lose its instruction."""
    for line in template.splitlines():
        if "{instruction}" in line and "{context}" in line:
            raise ConfigError(
                f"data.template: {{instruction}} and {{context}} share the line {line!r}, which is removed for a row without "
                "context. Put them on separate lines."
            )


def apply_template(template: str, instruction: str, context: str) -> str:
    """The prompt. Without context, the template's lines with `{context}` are removed.

    Only the template is searched for placeholders, in one pass, so braces in the texts do not change.
    """
    if not context:
        template = "".join(line for line in template.splitlines(keepends=True) if "{context}" not in line)
    texts = {"instruction": instruction, "context": context}
    return PLACEHOLDER.sub(lambda match: texts[match[1]], template)
