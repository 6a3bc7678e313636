"""Templates of the judge's prompt: the two of the paper, or one from a file."""

import difflib
import re
from pathlib import Path

from cpo_ray.errors import ConfigError

# The paper's A.3, verbatim, including spaces and curly quotes.
DOLLY_TEMPLATE = (
    "For the following query to a chatbot, which response is more helpful?\n"
    " Query: {} \n"
    " Response A: {} \n"
    " Response B: {} \n"
    " State only “A” or “B” to indicate which response is more helpful. \n"
    " More helpful:"
)
WIKI_TEMPLATE = (
    "For the following prefix, which continuation is better?\n"
    " Prefix: {} \n"
    " Continuation A: {} \n"
    " Continuation B: {} \n"
    " State only “A” or “B” to indicate which continuation is more helpful. \n"
    " Better:"
)
TEMPLATES = {"dolly": DOLLY_TEMPLATE, "wiki": WIKI_TEMPLATE}

PLACEHOLDERS = ("prompt", "response_a", "response_b")
PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")


def read_template(name: str) -> str:
    """Return the template `dolly` or `wiki`, or the text of a file, with {prompt}, {response_a} and {response_b}.

    Each placeholder must occur once. Other braces are text, but a placeholder with another name is an error. Raises
    ConfigError with the file and what is wrong with it.
    """
    if name in TEMPLATES:
        return TEMPLATES[name].format(*(f"{{{name}}}" for name in PLACEHOLDERS))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {name}: neither `dolly` nor `wiki`, nor a readable UTF-8 file ({error})") from None
    found = PLACEHOLDER.findall(text)
    for placeholder in found:
        if placeholder not in PLACEHOLDERS:
            near = difflib.get_close_matches(placeholder, PLACEHOLDERS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"template {name}: unknown placeholder {{{placeholder}}}; did you mean {{{near}}}?")
    for placeholder in PLACEHOLDERS:
        if (times := found.count(placeholder)) != 1:
            raise ConfigError(f"template {name}: {{{placeholder}}} occurs {times} times; it must occur once")
    return text


def fill_template(template: str, prompt: str, response_a: str, response_b: str) -> str:
    """Fill the placeholders. The inserted texts are not searched for placeholders: they are inserted unchanged."""
    contents = dict(zip(PLACEHOLDERS, (prompt, response_a, response_b), strict=True))
    return PLACEHOLDER.sub(lambda match: contents[match[1]], template)
