"""Reads rows with several ranked answers (`data.source: preferences`): the best one becomes the response.

Answers are put in order, equal texts and empty ones are left out, and at most `data.max_answers` are kept.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from cpo_ray.data.answer_layouts import AnswersError, RatedPrompt, find_answers
from cpo_ray.data.chat import ChatError, Conversation, read_conversation, write_chat
from cpo_ray.data.layouts import RowLayout
from cpo_ray.data.objects import FileObject, read_objects
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, Place, RatedAnswer, ReadingCounts, content_hash

MESSAGES = "prompt"  # the key of a prompt's messages, in error messages


@dataclass(frozen=True)
class RatedRow:
    """A row of a file with its answers as they stand there."""

    row: InstructionRow
    place: Place
    is_single: bool  # one of several rows with the same prompt


def read_preferences(
    file: IO[bytes], name: str, layout: RowLayout
) -> Iterator[FileFormat | RatedRow | BadRow | ReadingCounts]:
    """Stream the file's format, and for each object a RatedRow, or a BadRow with the reason; then ReadingCounts.

    name: the file's name in messages. Raises DataError like `read_objects`.
    """
    counts: Counter[str] = Counter()
    for found in read_objects(file, name):
        if isinstance(found, FileObject):
            yield _read(found, layout, counts)
        else:
            yield found
    yield ReadingCounts(dict(counts))


def _read(found: FileObject, layout: RowLayout, counts: Counter[str]) -> RatedRow | BadRow:
    record = found.value
    if not isinstance(record, dict):
        return found.bad(f"a JSON object is expected, not {type(record).__name__}")
    try:
        rated = find_answers(record, layout.fields)
        instruction, conversation = _instruction(rated)
    except (AnswersError, ChatError) as error:
        return found.bad(str(error))
    category = record.get(layout.fields.category or "category")
    if not instruction.strip():
        return found.bad("empty prompt")
    counts["conversations"] += not isinstance(rated.prompt, str)
    counts["multi_turn_conversations"] += conversation is not None and conversation.is_multi_turn
    row = InstructionRow(
        source=layout.source,
        category=category.strip() if isinstance(category, str) else "",
        instruction=instruction if rated.is_prompt else instruction.strip(),
        context="",
        response="",
        answers=tuple(replace(answer, text=answer.text.strip()) for answer in rated.answers),
        is_prompt=rated.is_prompt,
        chat=write_chat([turn.message for turn in conversation.turns], record.get("tools")) if conversation else "",
        has_tools=conversation is not None and conversation.has_tools,
        place=found.place,
    )
    return RatedRow(row, found.place, rated.is_single)


def _instruction(rated: RatedPrompt) -> tuple[str, Conversation | None]:
    """The prompt as text; and, if it has turns, these before an answer that stands for all of them."""
    if isinstance(rated.prompt, str):
        return rated.prompt, None
    turns: list[Any] = [*rated.prompt, {"role": "assistant", "content": "answer"}]
    conversation = read_conversation({MESSAGES: turns}, MESSAGES, strict=True)
    return conversation.instruction, conversation


def arrange(
    rows: Iterable[RatedRow], seed: int, max_answers: int, counts: Counter[str]
) -> Iterator[InstructionRow | BadRow]:
    """The rows with their answers in order, the best as the response; rows with one answer are joined by their prompts.

    Better answers come first; the order of ties depends on `seed` and the texts. Of more than `max_answers`, the best, the
    worst and others evenly between them in this order are kept. `counts` gets what was left out, and ties among what was kept.
    A row with fewer than two different answers, or whose answers are all equally good, is a BadRow.
    """
    for rated in _join(rows):
        answers = _distinct(rated.row.answers, counts)
        if len(answers) < 2:
            yield rated.place.bad(f"{len(answers)} different answers, but at least two are needed to prefer one")
            continue
        ranked = _rank(rated.row, answers, seed)
        if ranked[-1].rank == 0:
            score = "" if ranked[0].score is None else f" (score {ranked[0].score:g})"
            yield rated.place.bad(f"all {len(ranked)} answers are equally good{score}, so none is preferred")
            continue
        kept = rank_again([ranked[n] for n in evenly(len(ranked), max_answers)])
        counts["answers"] += len(kept)
        counts["answers_left_out"] += len(ranked) - len(kept)
        counts["tied_answers"] += sum(n for n in Counter(answer.rank for answer in kept).values() if n > 1)
        yield replace(rated.row, response=kept[0].text, answers=tuple(kept))


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers 0 .. count - 1 (all, if there are fewer): the first, the last and others evenly between them."""
    if count <= wanted:
        return list(range(count))
    return [n * (count - 1) // (wanted - 1) for n in range(wanted)]


def rank_again(answers: Sequence[RatedAnswer]) -> list[RatedAnswer]:
    """Answers in order, with ranks that count how many of them are better."""
    first: dict[int, int] = {}
    return [replace(answer, rank=first.setdefault(answer.rank, n)) for n, answer in enumerate(answers)]


def _join(rows: Iterable[RatedRow]) -> Iterator[RatedRow]:
    """The rows, and those with one answer joined, where the first row of their prompt stands."""
    rows = list(rows)
    together: dict[str, list[RatedAnswer]] = {}
    for rated in rows:
        if rated.is_single:
            together.setdefault(rated.row.instruction, []).extend(rated.row.answers)
    for rated in rows:
        if not rated.is_single:
            yield rated
        elif rated.row.instruction in together:
            answers = together.pop(rated.row.instruction)
            yield replace(rated, row=replace(rated.row, answers=tuple(answers)))


def _distinct(answers: Iterable[RatedAnswer], counts: Counter[str]) -> list[RatedAnswer]:
    """The answers without empty ones and without those whose text is that of an earlier one."""
    kept: dict[str, RatedAnswer] = {}
    for answer in answers:
        if not answer.text:
            counts["empty_answers"] += 1
        elif answer.text in kept:
            counts["repeated_answers"] += 1
        else:
            kept[answer.text] = answer
    return list(kept.values())


def _rank(row: InstructionRow, answers: Sequence[RatedAnswer], seed: int) -> list[RatedAnswer]:
    """The answers of a row in order, with ranks that count how many are better."""

    def quality(answer: RatedAnswer) -> float:
        return answer.rank if answer.score is None else -answer.score

    def order(answer: RatedAnswer) -> tuple[float, str]:  # sorting is stable: groups of a run keep their order
        return quality(answer), "" if row.is_prompt else content_hash(seed, "answer", row.instruction, answer.text)

    levels = sorted({quality(answer) for answer in answers})
    ordered = sorted(answers, key=order)
    return rank_again([replace(answer, rank=levels.index(quality(answer))) for answer in ordered])
