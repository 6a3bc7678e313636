"""What the judge is asked: the paper's two questions, or one's own from a file."""

import difflib
import re
from pathlib import Path

from cpo_ray.errors import ConfigError

# The paper's A.3, verbatim, blanks and curly quotes included.
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

PLACES = ("prompt", "response_a", "response_b")
PLACE = re.compile(r"\{([A-Za-z_]+)\}")


def read_template(name: str) -> str:
    """The template `dolly` or `wiki`, or the text of a file, with the places {prompt}, {response_a} and {response_b}.

    Each place stands once. Other braces are text, but a place by another name is a slip. Raises ConfigError naming the
    file and what is wrong with it.
    """
    if name in TEMPLATES:
        return TEMPLATES[name].format(*(f"{{{place}}}" for place in PLACES))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {name}: neither `dolly` nor `wiki`, and no UTF-8 file to read ({error})") from None
    found = PLACE.findall(text)
    for place in found:
        if place not in PLACES:
            near = difflib.get_close_matches(place, PLACES, n=1, cutoff=0.0)[0]
            raise ConfigError(f"template {name}: there is no place {{{place}}}; did you mean {{{near}}}?")
    for place in PLACES:
        if found.count(place) != 1:
            raise ConfigError(f"template {name}: {{{place}}} stands in it {found.count(place)} times; it must once")
    return text


def fill_template(template: str, prompt: str, response_a: str, response_b: str) -> str:
    """The question. What is put in is not searched for places: text under judgement goes in as it is."""
    contents = dict(zip(PLACES, (prompt, response_a, response_b), strict=True))
    return PLACE.sub(lambda match: contents[match[1]], template)
