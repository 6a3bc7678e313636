"""Which training rows become groups, and how many tokens their prompts keep."""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cpo_ray.config import RunConfig, SamplingConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.records import cut_prompt
from cpo_ray.sampling.negatives.batch import too_few_responses
from cpo_ray.sampling.negatives.truncation import MINIMUM_TOKENS
from cpo_ray.sampling.units import windows

BatchPlan = Callable[[int], Iterable[tuple[Sequence[int], int]]]
"""Number of rows -> for each unit, the rows that exchange responses and the first row that negatives are drawn for."""


@dataclass(frozen=True)
class Selection:
    """The rows of a groups artifact, in the order of the training split."""

    table: pa.Table  # EXAMPLE_SCHEMA
    truncated_prompts: int  # number of prompts that were cut
    left_out: dict[str, int]  # reason -> rows


def select_rows(
    table: pa.Table,
    config: RunConfig,
    context: int,
    eos: int,
    batches: BatchPlan | None = None,
    special: Collection[int] = frozenset(),
) -> Selection:
    """Take the first `sampling.rows` rows, without those that cannot become groups.

    Such a row follows `data.on_bad_row`: DataError with its id, or left out and counted. A prompt that leaves no room for
    `data.max_response_tokens` in the reference's `context` is cut (`cut_prompt`) and counted; those of this run's data fit.
    special: ids of the special tokens with which a prompt may begin.
    batches: the batches in which negatives are drawn. Default: `sampling.batch_rows` consecutive rows.
    Raises ConfigError if the context has no room for any prompt, DataError if a batch has too few distinct responses for its
    batch negatives.
    """
    room = context - config.data.max_response_tokens
    if room < 1:
        raise ConfigError(
            f"data.max_response_tokens {config.data.max_response_tokens} leaves no room for a prompt in the "
            f"reference's context of {context} positions"
        )
    table = table.slice(0, config.sampling.rows).combine_chunks()
    usable, left_out = np.ones(len(table), dtype=bool), {}
    for reason, is_bad in _faults(config, eos).items():
        bad = usable & is_bad(table)
        if bad.any():
            left_out[reason] = int(bad.sum())
            usable &= ~bad
            if config.data.on_bad_row == "error":
                raise _bad_row(table, bad, reason)
    table = table.filter(pa.array(usable)).combine_chunks()
    if len(table) == 0:
        raise DataError(f"no training row is left to make groups of: {left_out}")
    check_batches(table, config.sampling, batches)
    truncated = int((_lengths(table, "prompt_ids") > room).sum())
    return Selection(_cut_prompts(table, room, special) if truncated else table, truncated, left_out)


def _cut_prompts(table: pa.Table, room: int, special: Collection[int]) -> pa.Table:
    index, prompts = table.schema.get_field_index("prompt_ids"), table["prompt_ids"].to_pylist()
    field = table.schema.field(index)
    cut = pa.array([cut_prompt(ids, room, special) for ids in prompts], field.type)
    return table.set_column(index, field, cut).combine_chunks()


def check_batches(table: pa.Table, config: SamplingConfig, batches: BatchPlan | None = None) -> None:
    """Raise DataError for the first row whose batch has too few other responses. Called before any actor starts."""
    wanted = config.negatives.batch
    if not wanted:
        return
    values = table["response_ids"].combine_chunks().values.to_numpy(zero_copy_only=False)
    offsets = _offsets(table, "response_ids")
    responses = [values[start:stop].tobytes() for start, stop in itertools.pairwise(offsets)]
    for rows, first in (batches or _consecutive(config.batch_rows))(len(table)):
        others = len({responses[row] for row in rows}) - 1
        if others < wanted:
            raise too_few_responses(table["id"][first].as_py(), others)


def _consecutive(batch_rows: int) -> BatchPlan:
    return lambda rows: ((range(first, stop), start) for first, start, stop in windows(rows, batch_rows))


Fault = Callable[[pa.Table], npt.NDArray[np.bool_]]


def _faults(config: RunConfig, eos: int) -> dict[str, Fault]:
    longest = config.data.max_response_tokens

    def text_tokens(table: pa.Table) -> npt.NDArray[np.int64]:
        return _lengths(table, "response_ids") - (_last(table, "response_ids") == eos)

    def has_no_eos(table: pa.Table) -> npt.NDArray[np.bool_]:
        """A response that is cut to the limit has none; a passage, after which its text goes on, may be shorter."""
        is_cut = _lengths(table, "response_ids") == longest
        return (_last(table, "response_ids") != eos) & ~is_cut & (not config.data.responses_go_on)

    faults: dict[str, Fault] = {
        "empty prompt": lambda table: _lengths(table, "prompt_ids") == 0,
        "empty response": lambda table: text_tokens(table) == 0,
        "response longer than data.max_response_tokens": lambda table: _lengths(table, "response_ids") > longest,
        "response without the tokenizer's EOS": has_no_eos,
    }
    if config.sampling.negatives.truncation:
        faults["one-token response, which has no truncation negative"] = lambda table: (
            text_tokens(table) < MINIMUM_TOKENS
        )
    if config.data.has_answers and not config.sampling.negatives.total:
        faults["no second answer, and no negatives are configured"] = lambda table: _lengths(table, "answer_ids") == 0
    return faults


def _bad_row(table: pa.Table, bad: npt.NDArray[np.bool_], reason: str) -> DataError:
    first = int(np.flatnonzero(bad)[0])
    return DataError(
        f"training row {table['id'][first].as_py()} (number {first}) and {int(bad.sum()) - 1} more: {reason}. "
        "Set data.on_bad_row: quarantine to leave such rows out of the groups, with a count."
    )


def _lengths(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return np.diff(_offsets(table, column))


def _last(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    """The last token of each row; -1 for an empty row."""
    offsets = _offsets(table, column)
    values = np.append(table[column].combine_chunks().values.to_numpy(zero_copy_only=False), -1)
    return np.where(np.diff(offsets) > 0, values[offsets[1:] - 1], -1)


def _offsets(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return table[column].combine_chunks().offsets.to_numpy().astype(np.int64)
