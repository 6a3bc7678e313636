"""Finds the answers of a row, with their scores or order: pairs, lists of rated answers, one answer per row, or groups."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cpo_ray.config import FieldsConfig
from cpo_ray.data.objects import keys_of
from cpo_ray.data.rows import RatedAnswer

ChatMessages = list[dict[str, Any]]

PROMPTS = ("prompt", "instruction", "question", "messages", "context")
LISTS = ("completions", "responses", "answers", "generations", "candidates")
TEXTS = ("response", "text", "content", "completion", "answer", "output")
SCORES = ("fine-grained_score", "overall_score", "score", "rating", "win", "reward", "helpfulness")
RANKS = ("rank", "ranking")
BOTH = (("response1", "response2"), ("response_1", "response_2"))
STRENGTHS = ("overall_preference", "preference_strength", "preference")
"""Of HelpSteer: below 0 if the first response is better, above 0 if the second is."""
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
)
ORDER = "order"  # the value of `fields.score` for answers whose order is their rank
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


class AnswersError(Exception):
    """A row whose answers cannot be found or compared. The message says what is there and what to do."""


class RatedPrompt(NamedTuple):
    """A prompt, as text or as messages, with its answers in the order of the row."""

    prompt: str | ChatMessages
    answers: list[RatedAnswer]
    is_single: bool = False  # one of several rows with the same prompt
    is_prompt: bool = False  # whether the prompt is complete, so that no template applies


def find_answers(record: Mapping[str, Any], fields: FieldsConfig) -> RatedPrompt:
    """The answers of a row. Raises AnswersError for a row without known answers, or whose scores are not numbers."""
    if "candidate_text" in record:
        return _group(record)
    if "chosen" in record and "rejected" in record:
        return _pair(record, fields)
    for first, second in BOTH:
        if first in record and second in record:
            return _two_responses(record, fields, first, second)
    key = fields.answers or next((key for key in LISTS if isinstance(record.get(key), list)), None)
    if key is not None:
        return RatedPrompt(_prompt(record, fields), _list(record, key, fields))
    text = next((record[key] for key in (fields.response, *TEXTS) if isinstance(record.get(key), str)), None)
    score = _named(record, fields.score, SCORES)
    if text is not None and score is not None:
        return RatedPrompt(_prompt(record, fields), [RatedAnswer(text, _number(score, record[score]))], is_single=True)
    raise AnswersError(
        f"no ranked answers: a row needs chosen and rejected, or a list ({', '.join(LISTS)}) of answers with scores, or one "
        f"answer with a score; found {keys_of(record)}. Name the fields with data.fields.answers and data.fields.score"
    )


def _prompt(record: Mapping[str, Any], fields: FieldsConfig) -> str | ChatMessages:
    names = PROMPTS if fields.instruction == FieldsConfig().instruction else (fields.instruction,)
    key = next((key for key in names if isinstance(record.get(key), str | list)), None)
    if key is None:
        raise AnswersError(f"no prompt: one of {', '.join(names)} is needed; found {keys_of(record)}")
    return dialogue(record[key])


def dialogue(prompt: str | ChatMessages) -> str | ChatMessages:
    """The messages of a text with the speakers `Human:` and `Assistant:` (Anthropic's HH); anything else as it is.

    A last `Assistant:` without text is where the answer begins.
    """
    if not isinstance(prompt, str) or not prompt.startswith("\n\nHuman:"):
        return prompt
    _, *pieces = SPEAKER.split(prompt)
    turns = [{"role": ROLES[who], "content": text.strip()} for who, text in zip(pieces[::2], pieces[1::2], strict=True)]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _group(record: Mapping[str, Any]) -> RatedPrompt:
    """A row of a groups artifact of this program."""
    texts, ranks, scores = record["candidate_text"], record.get("rank"), record.get("score")
    if not isinstance(ranks, list) or not isinstance(texts, list) or len(ranks) != len(texts):
        raise AnswersError("candidate_text and rank must be lists of one length, as in the groups of a run")
    known = isinstance(scores, list) and None not in scores
    answers = [
        RatedAnswer(text, float(scores[k]) if known and scores else None, int(rank))
        for k, (text, rank) in enumerate(zip(texts, ranks, strict=True))
    ]
    return RatedPrompt(str(record.get("prompt")), answers, is_prompt=True)


def _two_responses(record: Mapping[str, Any], fields: FieldsConfig, first: str, second: str) -> RatedPrompt:
    key = _named(record, fields.score, STRENGTHS)
    if key is None:
        raise AnswersError(f"{first} and {second} have no preference: {', '.join(STRENGTHS)}; found {keys_of(record)}")
    strength = _number(key, record[key])
    names = ("prompt", "context") if isinstance(record.get("prompt"), str | list) else ("context",)
    prompt = next((record[name] for name in names if isinstance(record.get(name), str | list)), None)
    if prompt is None:
        raise AnswersError(f"no prompt: prompt or context is needed; found {keys_of(record)}")
    ranks = (int(strength > 0), int(strength < 0))
    texts = (_text(first, record[first]), _text(second, record[second]))
    return RatedPrompt(
        dialogue(prompt), [RatedAnswer(text, None, rank) for text, rank in zip(texts, ranks, strict=True)]
    )


def _pair(record: Mapping[str, Any], fields: FieldsConfig) -> RatedPrompt:
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None and not (chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:")):
            start = common_prompt(chosen, rejected)
            found, texts = chosen[:start].strip(), (chosen[start:], rejected[start:])
            if not found:
                raise AnswersError("chosen and rejected have no common beginning, and there is no prompt: add one")
            return RatedPrompt(found, _pair_answers(record, texts))
        if prompt is not None:
            return RatedPrompt(_prompt(record, fields), _pair_answers(record, (chosen, rejected)))
        chosen, rejected = dialogue(chosen), dialogue(rejected)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        names = f"{type(chosen).__name__} and {type(rejected).__name__}"
        raise AnswersError(f"chosen and rejected must both be texts, or both lists of messages, not {names}")
    (before, best), (also, worst) = (
        _split(prompt, turns, what) for turns, what in ((chosen, "chosen"), (rejected, "rejected"))
    )
    if before != also:
        raise AnswersError("chosen and rejected answer different conversations: only their last messages may differ")
    return RatedPrompt(before, _pair_answers(record, (best, worst)))


def _split(prompt: object, turns: ChatMessages, what: str) -> tuple[ChatMessages, str]:
    """The messages before the answer, and the answer. The messages may begin with the prompt or follow it."""
    if not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise AnswersError(f"{what} must be a list of messages with role and content")
    *before, last = turns
    if (last.get("role") or last.get("from")) not in ("assistant", "gpt"):
        raise AnswersError(
            f"{what} ends with a message of {last.get('role') or last.get('from')}, not of the assistant"
        )
    leading = dialogue(prompt) if isinstance(prompt, str) else prompt
    if isinstance(leading, str):
        leading = [{"role": "user", "content": leading}]
    if not before and isinstance(leading, list):
        before = leading
    elif isinstance(prompt, list) and before[: len(prompt)] != prompt:
        before = [*prompt, *before]
    content = last["content"] if "content" in last else last.get("value")
    return before, _text(f"the last message of {what}", content)


def _pair_answers(record: Mapping[str, Any], texts: Sequence[str]) -> list[RatedAnswer]:
    keys = next((keys for keys in PAIR_SCORES if all(record.get(key) is not None for key in keys)), None)
    if keys is None:
        return [RatedAnswer(text, None, rank) for rank, text in enumerate(texts)]
    best, worst = (_number(key, record[key]) for key in keys)
    if best < worst:
        raise AnswersError(f"chosen has the score {best:g}, below the {worst:g} of rejected ({', '.join(keys)})")
    return [RatedAnswer(texts[0], best), RatedAnswer(texts[1], worst)]


def common_prompt(chosen: str, rejected: str) -> int:
    """Where the answers begin in two texts that begin with the same prompt.

    After the last `Assistant:` of what they have in common, or else after its last line break, or else its last space, because
    the first words of two answers may be the same.
    """
    end = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    common = chosen[:end]
    for mark in ("Assistant:", "\n", " "):
        place = common.rfind(mark)
        if place >= 0:
            return place + len(mark)
    return 0


def _list(record: Mapping[str, Any], key: str, fields: FieldsConfig) -> list[RatedAnswer]:
    answers = record.get(key)
    if not isinstance(answers, list) or not answers:
        raise AnswersError(f"{key} must be a list of answers, found {type(answers).__name__}")
    if fields.score == ORDER:
        return [RatedAnswer(_answer_text(key, n, answer, fields), None, n) for n, answer in enumerate(answers)]
    if all(isinstance(answer, str) for answer in answers):
        return _parallel(record, key, answers, fields)
    rated = [
        _rated(f"{key}[{n}]", answer, _answer_text(key, n, answer, fields), fields) for n, answer in enumerate(answers)
    ]
    if len({answer.score is None for answer in rated}) > 1:
        raise AnswersError(
            f"some answers of {key} have a score, others only a rank. Name one of them with data.fields.score"
        )
    return rated


def _parallel(record: Mapping[str, Any], key: str, answers: list[str], fields: FieldsConfig) -> list[RatedAnswer]:
    """Texts, with their scores or ranks in another list of the row."""
    names = (fields.score,) if fields.score else tuple(f"{name}s" for name in (*SCORES, *RANKS))
    other = next((name for name in names if isinstance(record.get(name), list)), None)
    if other is None:
        raise AnswersError(
            f"{key} has texts without scores: a list of scores or ranks is needed beside it. If they are in order, best first, "
            f"set data.fields.score={ORDER}"
        )
    numbers = [_number(f"{other}[{n}]", value) for n, value in enumerate(record[other])]
    if len(numbers) != len(answers):
        raise AnswersError(f"{key} has {len(answers)} answers, but {other} has {len(numbers)} numbers")
    if other.rstrip("s") in RANKS:
        return [RatedAnswer(text, None, int(number)) for text, number in zip(answers, numbers, strict=True)]
    return [RatedAnswer(text, number) for text, number in zip(answers, numbers, strict=True)]


def _answer_text(key: str, number: int, answer: object, fields: FieldsConfig) -> str:
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, Mapping):
        raise AnswersError(f"{key}[{number}] must be a text or an object, not {type(answer).__name__}")
    name = next((name for name in (fields.response, *TEXTS) if name in answer), None)
    if name is None:
        raise AnswersError(f"{key}[{number}] has no text: one of {', '.join(TEXTS)} is needed; found {keys_of(answer)}")
    return _text(f"{key}[{number}].{name}", answer[name])


def _rated(place: str, answer: object, text: str, fields: FieldsConfig) -> RatedAnswer:
    """An answer with the score, or else the rank, that it names."""
    if not isinstance(answer, Mapping):
        raise AnswersError(f"{place} is a text, but other answers are objects with scores")
    score = _named(answer, fields.score, SCORES)
    if score is not None and score not in RANKS:
        return RatedAnswer(text, _number(f"{place}.{score}", answer[score]))
    rank = score or _named(answer, None, RANKS)
    if rank is None:
        wanted = fields.score or ", ".join((*SCORES, *RANKS))
        raise AnswersError(f"{place} has no score ({wanted}); found {keys_of(answer)}. Name it with data.fields.score")
    return RatedAnswer(text, None, int(_number(f"{place}.{rank}", answer[rank])))


def _named(record: Mapping[str, Any], name: str | None, known: Sequence[str]) -> str | None:
    return next((key for key in ((name,) if name else known) if record.get(key) is not None), None)


def _number(place: str, value: object) -> float:
    """A finite number, also as text. Raises AnswersError for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else float("nan")
    except ValueError:
        number = float("nan")
    if number - number != 0:
        raise AnswersError(f"{place} must be a number, but is {value!r}. Leave such rows out")
    return number


def _text(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise AnswersError(f"{place} must be text, not {type(value).__name__}")
    return value
