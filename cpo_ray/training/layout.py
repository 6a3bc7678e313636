"""The layout in which all workers compute, settled on the task's own rows before training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from cpo_ray.artifacts import read_table
from cpo_ray.objective.architectures import layout_of
from cpo_ray.objective.check import (
    NotComputable,
    choose_groups,
    example_groups,
    fall_back,
    first_not_finite,
    level_of,
    settle_layout,
)
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.records import Tokens
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.task import Refusal, Task


def settle_on_workers(model: PreTrainedModel, task: Task, notify: Callable[[str], None]) -> None:
    """Compare packed log-probs with the model's own, and give every worker the slowest layout that one of them needs.

    Call it while every worker has all weights. Raises Refusal if there is none that is right, on all workers.
    """
    groups = example_groups(model) if task.rows is None else extreme_groups(task.rows)
    fault = None
    try:
        settle_layout(model, *groups)
    except NotComputable as error:
        fault = str(error)
    mine = (level_of(model), layout_of(model).separate, fault)
    findings = [mine] * dist.get_world_size()
    dist.all_gather_object(findings, mine)
    for _, _, found in findings:
        if found is not None:
            raise Refusal(found)
    level, reason, _ = max(findings, key=lambda finding: finding[0])
    if level > level_of(model):
        fall_back(model, level, reason or "another worker needs it")
    notice = layout_of(model).notice
    if notice is not None:
        notify(notice)


@torch.no_grad()
def describe_row(engine: Any, rows: TrainingRows, row: int) -> str:
    """The row's id, and if log-probs are not finite, of which candidate and since which layer."""
    name, model = rows.ids[row], engine.module.model
    if engine.zero_optimization_stage() == 3:
        return name  # a forward pass would need all workers
    packed = pack_groups([rows.prompts[row]], [rows.candidates[row]]).to(engine.device)
    broken = (~candidate_logps(model, packed)[0].isfinite()).nonzero().flatten().tolist()
    if not broken:
        return name
    layer = first_not_finite(model, packed) or "the log-softmax"
    return f"{name} (candidate {broken[0]}, {rows.kinds[row][broken[0]]}; first not finite: {layer})"


def extreme_groups(folder: Path) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Some continuations of the longest and of the shortest row of a folder of examples or groups."""
    table = read_table(folder).combine_chunks()
    prompts = _lengths(table["prompt_ids"])
    if "candidate_ids" in table.column_names:
        candidates, counts = table["candidate_ids"].combine_chunks(), _lengths(table["candidate_ids"])
        continuations = np.maximum.reduceat(_lengths(candidates.flatten()), np.cumsum(counts) - counts)
    else:
        continuations = _lengths(table["response_ids"])
    sizes = prompts + continuations
    rows = [table.slice(int(row), 1).to_pylist()[0] for row in (sizes.argmax(), sizes.argmin())]
    return choose_groups(
        [row["prompt_ids"] for row in rows], [row.get("candidate_ids") or [row["response_ids"]] for row in rows]
    )


def _lengths(lists: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.array(pc.list_value_length(lists).to_pylist(), dtype=np.int64)
