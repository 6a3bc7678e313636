"""The synthetic task: instructions in varied English whose answers can be checked. Needs no file and no network."""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from random import Random

from cpo_ray.data.rows import InstructionRow
from cpo_ray.data.synthetic_families import FAMILIES, QuestionFamily, SyntheticQuestion

OPENERS = ("Sure.", "Of course.", "Let us see.", "Good question.", "Here you go.")
OPENER_SHARE = 0.5
JOINERS = (", ", " and ")  # between the last two words of an answer that is a list
WORD = re.compile(r"[a-z0-9]+")


def synthetic_rows(seed: int) -> Iterator[InstructionRow]:
    """Endless rows, no two with the same instruction and context. Row n does not depend on how many rows are taken."""
    seen: set[tuple[str, str]] = set()
    for index in itertools.count():
        rng = Random(f"{seed}/synthetic/{index}")
        family = rng.choice(FAMILIES)
        question = family.draw(rng)
        instruction = _capitalize(rng.choice(family.instructions).format(**question.slots))
        if (instruction, question.context) in seen:
            continue
        seen.add((instruction, question.context))
        yield InstructionRow(
            source="synthetic",
            category=family.name,
            instruction=instruction,
            context=question.context,
            response=_respond(rng, family, question),
            answer=tuple(words(" ".join(question.answer))),
        )


def filler_words() -> list[str]:
    """The lower-case words of all response phrasings, sorted. None of them is part of an answer."""
    phrasings = [
        *OPENERS,
        *JOINERS,
        *(text.replace("{answer}", " ") for family in FAMILIES for text in family.responses),
    ]
    return sorted({word for text in phrasings for word in words(text)})


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, in order."""
    return WORD.findall(text.lower())


def is_right(response: str, answer: Sequence[str], filler: Collection[str]) -> bool:
    """Whether the words of the response, without the filler words, are the words of the answer, in order."""
    return [word for word in words(response) if word not in filler] == list(answer)


def _respond(rng: Random, family: QuestionFamily, question: SyntheticQuestion) -> str:
    *most, last = question.answer
    answer = rng.choice(JOINERS).join([", ".join(most), last]) if most else last
    response = _capitalize(rng.choice(family.responses).format(answer=answer))
    return f"{rng.choice(OPENERS)} {response}" if rng.random() < OPENER_SHARE else response


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
