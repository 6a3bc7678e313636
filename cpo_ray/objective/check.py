"""Packed equals separate, or it is not packed: a comparison on the user's own model and rows, before they are used.

The first-step check of training cannot find an architecture that trees get wrong, because reference and policy share the
error. So a few continuations are also computed by the model's own forward pass, one unpadded row each. If they differ by more
than noise, the model computes separate rows; if those differ too, its own logits of them; if even they do, nothing is right.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cpo_ray.objective.architectures import layout_of, set_layout
from cpo_ray.objective.attention import DENSE, UnknownAttention, register, use_rows
from cpo_ray.objective.head import UnknownHead
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import PackedGroups, pack_groups
from cpo_ray.objective.rotary import row_lengths
from cpo_ray.records import Tokens

TOLERANCE = 1e-3  # nats for each square root of a token, in float32: roundings of tokens add up at random
NOISE_FLOOR = 0.03  # the same in bf16, if two separate computations happen to agree
NOISE = 4  # times what they differ by
FEW = 4  # candidates of a group that are compared
FAILURES = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
)  # of a model given what it does not expect
LONG = 512  # tokens of the longest example if there are no rows
# What is tried, one after the other.
LEVELS = ("trees", "rows with our attention", "rows with the model's own attention", "its own logits of those rows")


@dataclass(frozen=True)
class PackingDifference:
    """How far log-probs are from those of separate forward passes, in nats per square root of a continuation's tokens."""

    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is noise. A difference that is not a number is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        return f"log-probs differ from separate rows by {self.difference:.2g} nats (tolerance {self.tolerance:.2g})"


class NotComputable(ValueError):  # noqa: N818 - it is no fault of the model
    """Neither trees nor rows give the log-probs of the model's own forward pass."""


def choose_groups(
    prompts: Sequence[Tokens], candidates: Sequence[Sequence[Tokens]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """The longest and the shortest group, with the gold, the longest and the shortest of the other candidates and one more."""
    sizes = [len(prompt) + max(map(len, group)) for prompt, group in zip(prompts, candidates, strict=True)]
    rows = sorted({sizes.index(max(sizes)), sizes.index(min(sizes))})
    chosen = []
    for row in rows:
        group = candidates[row]
        order = sorted(range(len(group)), key=lambda k: len(group[k]))
        few = dict.fromkeys([0, order[-1], order[0], *order])
        chosen.append([group[k] for k in list(few)[:FEW]])
    return [prompts[row] for row in rows], [group + group[:1] * (FEW - len(group)) for group in chosen]


def example_groups(model: PreTrainedModel) -> tuple[list[Tokens], list[list[Tokens]]]:
    """A short and a long group of random tokens: for where no row is there yet."""
    config, draw = model.config.get_text_config(decoder=True), random.Random(0)
    longest = min(LONG, getattr(config, "max_position_embeddings", None) or LONG)

    def tokens(count: int) -> Tokens:
        return [draw.randrange(config.vocab_size) for _ in range(count)]

    halves = [min(4, longest // 2), longest // 2]
    golds = [tokens(half) for half in halves]
    return [tokens(half) for half in halves], [[gold, gold[:-1], tokens(len(gold)), gold[:1]] for gold in golds]


@torch.no_grad()
def settle_layout(
    model: PreTrainedModel, prompts: Sequence[Tokens], candidates: Sequence[Sequence[Tokens]]
) -> str | None:
    """Compare, and leave the model with the fastest layout that is right. Returns a line for the user if prompts aren't shared.

    The groups should include a long and a short one: see `choose_groups`. Raises NotComputable if no layout is right.
    """
    separate = separate_logps(model, prompts, candidates)
    if not separate.isfinite().all():
        return layout_of(model).notice  # whoever computes scores of all rows names the row
    tolerance = find_tolerance(model, prompts, candidates, separate)
    packed = pack_groups(prompts, candidates).to(model.device)
    reason = layout_of(model).separate
    while True:
        try:
            comparison = PackingDifference(_per_root(candidate_logps(model, packed) - separate, candidates), tolerance)
            if comparison.holds:
                return layout_of(model).notice
            found = f"packed {comparison}"
        except (UnknownAttention, UnknownHead) as error:
            found = str(error)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            found = f"its forward pass does not take packed rows: {type(error).__name__}: {error}".splitlines()[0]
        reason = reason or found
        if level_of(model) == len(LEVELS) - 1:
            raise NotComputable(
                f"{type(model).__name__}: in rows of their own, {found}. It is not causal, or not the same function twice"
            )
        fall_back(model, level_of(model) + 1, reason)


def level_of(model: PreTrainedModel) -> int:
    """Which of LEVELS the model is at."""
    layout = layout_of(model)
    if layout.separate is None:
        return 0
    return (3 if layout.own_logits else 2) if layout.own_attention else 1


def fall_back(model: PreTrainedModel, level: int, reason: str) -> None:
    """Go to a slower level: this model needs it, or another worker's copy of it does."""
    layout = layout_of(model)
    own_logits = layout.own_logits or level == len(LEVELS) - 1
    reason = layout.separate or reason
    set_layout(model, replace(layout, separate=reason, own_attention=level > 1, own_logits=own_logits))
    use_rows(model)


@torch.no_grad()
def separate_logps(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    candidates: Sequence[Sequence[Tokens]],
    attention: str = "eager",
    padding: int = 0,
) -> Tensor:
    """The definition: one forward pass of the model for each candidate, full softmax. (B, K), at least float32.

    attention: that of the model if it can be chosen. padding: so many more tokens after the row, and the row twice.
    """
    rows = []
    with _ordinary(model, attention):
        for prompt, group in zip(prompts, candidates, strict=True):
            row = []
            for candidate in group:
                ids = torch.tensor([prompt + candidate], device=model.device)
                if padding:
                    ids = torch.cat([ids, ids.new_zeros(1, padding)], dim=1).repeat(2, 1)
                with row_lengths(torch.full_like(ids, len(prompt) + len(candidate))):
                    logits = model(input_ids=ids, use_cache=False).logits[0]
                logits = logits[len(prompt) - 1 : len(prompt) + len(candidate) - 1]
                logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
                row.append(logp.gather(1, ids[0, len(prompt) :][: len(candidate), None]).sum())
            rows.append(torch.stack(row))
    return torch.stack(rows)


def find_tolerance(
    model: PreTrainedModel, prompts: Sequence[Tokens], candidates: Sequence[Sequence[Tokens]], separate: Tensor
) -> float:
    """What two correct computations may differ by, in nats per square root of a token: measured if the model is not float32."""
    if torch.finfo(model.dtype).eps <= torch.finfo(torch.float32).eps:
        return TOLERANCE
    try:
        again = separate_logps(model, prompts, candidates, DENSE, padding=7)
    except UnknownAttention:
        again = separate_logps(model, prompts, candidates, padding=7)
    return max(NOISE_FLOOR, NOISE * _per_root(again - separate, candidates))


def first_not_finite(model: PreTrainedModel, packed: PackedGroups) -> str | None:
    """The first module, in order of computation, whose output is not finite: its type and name. None if all outputs are."""
    found: list[str] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        tensors = output if isinstance(output, tuple | list) else [output]
        broken = any(isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors)
        if broken and not found:
            found.append(f"{type(module).__name__} ({name})")

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
        if not next(module.children(), None)
    ]
    try:
        with torch.no_grad():
            candidate_logps(model, packed)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


@contextlib.contextmanager
def _ordinary(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Within the block the model has this attention, if it can be chosen, and no dropout."""
    before, training = model.config._attn_implementation, [m for m in model.modules() if m.training]  # noqa: SLF001
    register()
    if model._can_set_attn_implementation():  # noqa: SLF001 - transformers has no public name for either
        model.set_attn_implementation(attention)
    model.eval()
    try:
        yield
    finally:
        if model._can_set_attn_implementation():  # noqa: SLF001
            model.set_attn_implementation(before)
        for module in training:
            module.training = True


def _per_root(difference_BK: Tensor, candidates: Sequence[Sequence[Tokens]]) -> float:
    lengths_BK = torch.tensor([[len(candidate) for candidate in group] for group in candidates])
    return float((difference_BK.abs() / lengths_BK.to(difference_BK).sqrt()).max())
