"""The variants of a training step. Each returns the scalar to differentiate; all but `mle` compute the same loss.

tree        cpo_ray: token trees, every shared prefix once, the LM head over chunks of the positions that need it
rows        cpo_ray for models that cannot compute trees: prompt + one continuation in each row, the head on continuations
separate    packed rows, the same attention and head, but a tree per prompt + candidate: no prefix is shared
unshared    as `separate`, and the LM head on every token
padded      one row per prompt + candidate, padded to the longest, full logits (as pairwise trainers do, K-wise)
mle         next-token loss; see `mle_like`
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from benchmarks.groups import CONTEXT, EOS, VOCABULARY, Batch
from cpo_ray.objective.architectures import Layout, set_layout
from cpo_ray.objective.attention import use_rows, use_tree_attention
from cpo_ray.objective.cost import GroupSize, measure_group
from cpo_ray.objective.head import lm_head_weight
from cpo_ray.objective.logprobs import EdgeLogProbs, candidate_logps, source_hidden
from cpo_ray.objective.losses import cpo_loss, mle_loss
from cpo_ray.objective.packing import PackedGroups, drop_padding, pack_groups
from cpo_ray.records import Tokens

# Width x layers: two of 30 M parameters, one for tests, and GPT2-XL's, whose FLOPs are only counted.
SHAPES = {"256x22": (256, 22), "384x6": (384, 6), "tiny": (64, 2)}
GPT2_XL = 1600, 48


def make_model(shape: str) -> GPT2LMHeadModel:
    """A GPT-2 with heads of 64, vocabulary 50,257 and the attention that cpo_ray selects."""
    torch.manual_seed(0)
    width, layers = SHAPES[shape]
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=CONTEXT,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    use_tree_attention(model)
    return model


def ranked_loss(logps_BK: Tensor) -> Tensor:
    """The ranked loss with 0.99 times the policy's log-probs as reference: the same number in every variant."""
    ranks = torch.arange(logps_BK.shape[1], device=logps_BK.device).repeat(logps_BK.shape[0], 1)
    return cpo_loss(logps_BK, logps_BK.detach() * 0.99, 5.0, ranks).mean()


def tree(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    return ranked_loss(candidate_logps(model, pack_groups(*batch)))


def own_rows(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    set_layout(model, Layout("measured"))
    use_rows(model)
    logps_BK = candidate_logps(model, pack_groups(*batch))
    set_layout(model, Layout())
    use_tree_attention(model)
    return ranked_loss(logps_BK)


def separate(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    return ranked_loss(candidate_logps(model, pack_separately(batch)).view(len(batch[0]), -1))


def unshared(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    rows = rows_of(batch)
    packed = pack_separately(([p[:1] for p, _ in rows], [[p[1:] + c] for p, c in rows]))
    logp_E = EdgeLogProbs.apply(
        source_hidden(model, packed), lm_head_weight(model), packed.edge_source_E, packed.edge_target_E
    )
    answer_M = torch.cat([torch.arange(len(p) + len(c) - 1) >= len(p) - 1 for p, c in rows])
    logps = torch.zeros(len(rows)).index_add(0, packed.member_candidate_M, logp_E[packed.member_edge_M] * answer_M)
    return ranked_loss(logps.view(len(batch[0]), -1))


def padded(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    model.set_attn_implementation("sdpa")
    logps_BK, _ = padded_logps(model, batch)
    use_tree_attention(model)
    return ranked_loss(logps_BK)


def padded_logps(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
    """Log-probs from full logits, (B, K), and the number of tokens computed."""
    rows = rows_of(batch)
    ids = torch.zeros(len(rows), padded_width(batch), dtype=torch.long)
    seen, answer = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (p, c) in enumerate(rows):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        seen[i, : len(p) + len(c)] = 1
        answer[i, len(p) : len(p) + len(c)] = True
    ids, seen, answer = (t.to(model.device) for t in (ids, seen, answer))
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    # As TRL's `selective_log_softmax`, the cheapest way from full logits: the softmax of one row at a time, in float32.
    wanted = logits.gather(2, ids[:, 1:, None]).squeeze(2).float()
    logps = wanted - torch.stack([row.float().logsumexp(-1) for row in logits])
    return (logps * answer[:, 1:]).sum(1).view(len(batch[0]), -1), ids.numel()


def mle(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    prompts, golds = batch[0], [group[0] for group in batch[1]]
    logps = candidate_logps(model, pack_groups(prompts, [[gold] for gold in golds]))
    return mle_loss(logps[:, 0], 1 / sum(len(gold) for gold in golds))


STEPS: dict[str, Callable[[GPT2LMHeadModel, Batch], Tensor]] = {
    "tree": tree, "rows": own_rows, "separate": separate, "unshared": unshared, "padded": padded, "mle": mle,
}  # fmt: skip


def rows_of(batch: Batch) -> list[tuple[Tokens, Tokens]]:
    return [(prompt, candidate) for prompt, group in zip(*batch, strict=True) for candidate in group]


def padded_width(batch: Batch) -> int:
    return max(len(p) + len(c) for p, c in rows_of(batch))


def padded_gib(batch: Batch) -> float:
    """Estimated peak of a padded step: about three times its logits, in float32."""
    return 3 * 4 * VOCABULARY * len(rows_of(batch)) * padded_width(batch) / 2**30


def pack_separately(batch: Batch) -> PackedGroups:
    """One tree per prompt and candidate, all in one row without padding. (`pack_groups` would share equal prompts.)"""
    parts = [pack_groups([p], [[c]]) for p, c in rows_of(batch)]
    columns: dict[str, list[Tensor]] = {f.name: [] for f in fields(PackedGroups) if f.type is Tensor}
    tokens = sources = edges = 0
    for number, part in enumerate(parts):
        shift = {
            "subtree_end_RN": tokens, "source_S": tokens, "edge_source_E": sources, "member_edge_M": edges,
            "member_candidate_M": number,
        }  # fmt: skip
        for name, column in columns.items():
            column.append(getattr(part, name) + shift.get(name, 0))
        tokens, sources, edges = tokens + part.tokens, sources + len(part.source_S), edges + len(part.edge_target_E)
    joined = {name: torch.cat(column, dim=-1) for name, column in columns.items()}
    return PackedGroups(**joined, groups=len(parts), candidates=1)


def flops_saved(batch: Batch, width: int, layers: int) -> float:
    """FLOPs of `separate` divided by those of `tree`: body x 3 (the backward pass counts twice), head x 4 (recomputed)."""

    def flops(sizes: list[GroupSize]) -> float:
        tokens, pairs, sources = (sum(getattr(size, name) for size in sizes) for name in ("tokens", "pairs", "sources"))
        return 3 * layers * (24 * width**2 * tokens + 4 * width * pairs) + 8 * VOCABULARY * width * sources

    trees = [measure_group(prompt, group) for prompt, group in zip(*batch, strict=True)]
    return flops([measure_group(p, [c]) for p, c in rows_of(batch)]) / flops(trees)


def mle_like(batch: Batch, texts: list[tuple[Tokens, Tokens]], *, predicted: bool) -> Batch:
    """A batch for `mle` of other prompts, each with its gold, that computes as many tokens as `tree` on this batch.

    predicted: predict as many tokens, too: each text is split where that needs it, not at the end of its prompt.
    """
    packed = drop_padding(pack_groups(*batch))
    wanted, share = packed.tokens, len(packed.source_S) / packed.tokens
    prompts: list[Tokens] = []
    golds: list[Tokens] = []
    for prompt, gold in texts:
        text = (prompt + gold)[: wanted + 1]  # a text's last token is predicted and never computed
        begin = max(1, round((1 - share) * len(text))) if predicted else min(len(prompt), len(text) - 1)
        prompts.append(text[:begin])
        golds.append(text[begin:])
        wanted -= len(text) - 1
        if wanted < 2:
            break
    return prompts, [[gold] for gold in golds]
