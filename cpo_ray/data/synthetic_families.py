"""The question families of the synthetic task: how a question is drawn, its phrasings, and its right answer.

A family draws a question and one of its instructions; a response is one of its phrasings with the answer filled in. No
phrasing contains an answer word, so removing the words of the phrasings from a response leaves only the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = ("Mara", "Otto", "Fern", "Ivan", "Lena", "Hugo", "Nina", "Omar", "Ruth", "Sven", "Tara", "Yuri")
TOWNS = ("Arlen", "Corby", "Delft", "Exton", "Fairby", "Genoa", "Holm", "Kelso", "Luton", "Morley")
HERD = ("goats", "hens", "cows", "ducks", "pigs", "bees", "cats", "ponies")
KINDS = {
    "animals": ("goat", "hen", "wolf", "rabbit", "fox", "donkey", "tiger"),
    "fruits": ("apple", "pear", "plum", "lemon", "cherry", "banana", "fig"),
    "tools": ("hammer", "drill", "wrench", "ladder", "shovel", "axe", "knife"),
    "colours": ("red", "blue", "green", "yellow", "purple", "black", "white"),
    "vehicles": ("car", "bus", "truck", "boat", "bicycle", "plane", "tram"),
    "furniture": ("chair", "bed", "desk", "sofa", "cupboard", "bench", "stool"),
}
WORDS = tuple(word for words in KINDS.values() for word in words)
ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class SyntheticQuestion:
    """A drawn question: the words for the instruction's slots, the words of the right answer, and the passage, if any."""

    slots: dict[str, str]
    answer: tuple[str, ...]
    context: str = ""


@dataclass(frozen=True)
class QuestionFamily:
    """One kind of question. `str.format` is safe on the phrasings, because they are all in this file."""

    name: str
    draw: Callable[[Random], SyntheticQuestion]
    instructions: tuple[str, ...]
    responses: tuple[str, ...]


def _numbers(rng: Random, count: int) -> list[int]:
    return rng.sample(range(1, 10), count)


def _items(values: list[str] | list[int]) -> dict[str, str]:
    return {"items": ", ".join(map(str, values))}


def _addition(rng: Random) -> SyntheticQuestion:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return SyntheticQuestion({"a": str(a), "b": str(b)}, (str(a + b),))


def _subtraction(rng: Random) -> SyntheticQuestion:
    b, a = sorted(_numbers(rng, 2))
    return SyntheticQuestion({"a": str(a), "b": str(b)}, (str(a - b),))


def _extreme(rng: Random) -> SyntheticQuestion:
    numbers = _numbers(rng, rng.randint(2, 3))
    extreme, pick = rng.choice([("largest", max), ("smallest", min)])
    return SyntheticQuestion({"extreme": extreme, **_items(numbers)}, (str(pick(numbers)),))


def _sort_numbers(rng: Random) -> SyntheticQuestion:
    numbers = _numbers(rng, 3)
    order, descending = rng.choice([("smallest to largest", False), ("largest to smallest", True)])
    answer = tuple(map(str, sorted(numbers, reverse=descending)))
    return SyntheticQuestion({"order": order, **_items(numbers)}, answer)


def _sort_words(rng: Random) -> SyntheticQuestion:
    words = rng.sample(WORDS, rng.randint(2, 3))
    return SyntheticQuestion(_items(words), tuple(sorted(words)))


def _reverse(rng: Random) -> SyntheticQuestion:
    words = rng.sample(WORDS, rng.randint(2, 3))
    return SyntheticQuestion(_items(words), tuple(reversed(words)))


def _position(rng: Random) -> SyntheticQuestion:
    words = rng.sample(WORDS, rng.randint(3, 4))
    place, word = rng.choice([*zip(ORDINALS, words, strict=False), ("last", words[-1])])
    return SyntheticQuestion({"place": place, **_items(words)}, (word,))


def _count(rng: Random) -> SyntheticQuestion:
    word, other = rng.sample(WORDS, 2)
    items = [word] * rng.randint(1, 4) + [other] * rng.randint(1, 3)
    rng.shuffle(items)
    return SyntheticQuestion({"word": word, **_items(items)}, (str(items.count(word)),))


def _odd_one_out(rng: Random) -> SyntheticQuestion:
    common, strange = rng.sample(sorted(KINDS), 2)
    odd = rng.choice(KINDS[strange])
    items = [*rng.sample(KINDS[common], 3), odd]
    rng.shuffle(items)
    return SyntheticQuestion(_items(items), (odd,))


def _word_length(rng: Random) -> SyntheticQuestion:
    extreme, pick = rng.choice([("longest", max), ("shortest", min)])
    while True:
        words = rng.sample(WORDS, rng.randint(2, 3))
        length = pick(map(len, words))
        if [len(word) for word in words].count(length) == 1:
            return SyntheticQuestion({"extreme": extreme, **_items(words)}, (pick(words, key=len),))


def _farm(rng: Random) -> tuple[list[str], list[str], list[int], str]:
    """Two keepers, the kinds of their animals, the numbers of their animals, and the passage."""
    names, herd, counts = rng.sample(NAMES, 2), rng.sample(HERD, 2), _numbers(rng, 2)
    verb = rng.choice(["keeps", "owns", "has"])
    facts = zip(names, counts, herd, strict=True)
    return names, herd, counts, " ".join(f"{name} {verb} {count} {things}." for name, count, things in facts)


def _how_many(rng: Random) -> SyntheticQuestion:
    names, herd, counts, passage = _farm(rng)
    n = rng.randrange(2)
    return SyntheticQuestion({"name": names[n], "thing": herd[n]}, (str(counts[n]),), passage)


def _who(rng: Random) -> SyntheticQuestion:
    names, herd, _, passage = _farm(rng)
    n = rng.randrange(2)
    return SyntheticQuestion({"thing": herd[n]}, (names[n],), passage)


def _fill_in(rng: Random) -> SyntheticQuestion:
    names, towns = rng.sample(NAMES, 2), rng.sample(TOWNS, 2)
    pets, colours = rng.sample(KINDS["animals"], 2), rng.sample(KINDS["colours"], 2)
    lines = [
        f"{name}: {town}, {pet}, {colour}" for name, town, pet, colour in zip(names, towns, pets, colours, strict=True)
    ]
    n = rng.randrange(2)
    sentence, answer = rng.choice(
        [
            (f"{names[n]} lives in", towns[n]),
            (f"The pet of {names[n]} is a", pets[n]),
            (f"The door of {names[n]} is painted", colours[n]),
        ]
    )
    return SyntheticQuestion({"sentence": sentence}, (answer,), "\n".join(lines))


_PICK = ("It is {answer}.", "The right choice is {answer}.", "I would pick {answer}.", "{answer} is what you want.",
         "That would be {answer}.", "My answer is {answer}.")  # fmt: skip
_RESULT = ("The result is {answer}.", "That makes {answer}.", "You get {answer}.", "It comes to {answer} in all.",
           "{answer} is the result.", "My answer is {answer}.")  # fmt: skip
_LISTED = ("The list becomes {answer}.", "Here is the new order: {answer}.", "You get {answer}.", "In that order: {answer}.",
           "It should read {answer}.", "The result is {answer}.")  # fmt: skip
_NOTED = ("The text says {answer}.", "According to the passage, it is {answer}.", "That would be {answer}.",
          "It says {answer} there.", "{answer}, as the passage tells.", "My answer is {answer}.")  # fmt: skip

FAMILIES = (
    QuestionFamily("addition", _addition, (
        "What is {a} plus {b}?", "Add {a} and {b}.", "Work out {a} + {b}.", "Find the sum of {a} and {b}.",
        "How much do {a} and {b} make together?"), (*_RESULT, "The sum is {answer}.", "They add up to {answer}.")),
    QuestionFamily("subtraction", _subtraction, (
        "What is {a} minus {b}?", "Take {b} away from {a}.", "Work out {a} - {b}.", "Subtract {b} from {a}.",
        "How much is left of {a} without {b}?"), (*_RESULT, "The difference is {answer}.", "What remains is {answer}.")),
    QuestionFamily("extreme", _extreme, (
        "Which number is the {extreme}: {items}?", "Pick the {extreme} number: {items}.", "Find the {extreme} of {items}.",
        "Of the numbers {items}, which is the {extreme}?"), _PICK),
    QuestionFamily("sort_numbers", _sort_numbers, (
        "Sort from {order}: {items}.", "Put these numbers in order, {order}: {items}.", "Order {items} from {order}.",
        "Arrange the numbers {items} from {order}."), (*_LISTED, "Sorted, they are {answer}.")),
    QuestionFamily("sort_words", _sort_words, (
        "Sort alphabetically: {items}.", "Put these words in alphabetical order: {items}.", "Order {items} from A to Z.",
        "Arrange the words {items} alphabetically."), (*_LISTED, "Sorted, they are {answer}.")),
    QuestionFamily("reverse", _reverse, (
        "Reverse this list: {items}.", "Say {items} backwards.", "Turn the list {items} around.",
        "List {items} from last to first."), (*_LISTED, "Backwards it goes {answer}.")),
    QuestionFamily("position", _position, (
        "Which is the {place} word: {items}?", "Name the {place} item of {items}.", "What comes {place} in {items}?",
        "Give me the {place} of these: {items}."), _PICK),
    QuestionFamily("count", _count, (
        "How often does {word} appear: {items}?", "Count the word {word} in {items}.", "How many times is {word} in {items}?",
        "In {items}, how many are {word}?"), (*_RESULT, "I count {answer}.", "It appears {answer} times.")),
    QuestionFamily("odd_one_out", _odd_one_out, (
        "Which is the odd one out: {items}?", "Find the word that does not fit: {items}.",
        "One of these is not like the others: {items}.", "Of {items}, which does not belong?"),
        (*_PICK, "The odd one out is {answer}.", "{answer} does not fit.")),
    QuestionFamily("word_length", _word_length, (
        "Which word is the {extreme}: {items}?", "Find the {extreme} word: {items}.",
        "Of {items}, which word is the {extreme}?", "Name the {extreme} of the words {items}."), _PICK),
    QuestionFamily("how_many", _how_many, (
        "How many {thing} does {name} have?", "Tell me the number of {thing} of {name}.", "Count the {thing} of {name}.",
        "What number of {thing} belongs to {name}?"), (*_NOTED, "The number is {answer}.", "There are {answer} of them.")),
    QuestionFamily("who", _who, (
        "Who has {thing}?", "Name the owner of the {thing}.", "To whom do the {thing} belong?", "Whose are the {thing}?"),
        (*_NOTED, "The owner is {answer}.", "They belong to {answer}.")),
    QuestionFamily("fill_in", _fill_in, (
        "Complete the sentence: {sentence} ...", "Finish this: {sentence} ...", "Fill the gap: {sentence} ___.",
        "Which word is missing? {sentence} ___."), (*_NOTED, "The missing word is {answer}.", "The gap takes {answer}.")),
)  # fmt: skip
