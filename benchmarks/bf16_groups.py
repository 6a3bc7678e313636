"""Models, groups and wrongly scored groups for `benchmarks.bf16`."""

import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cpo_ray.data.rows import InstructionRow
from cpo_ray.data.synthetic import synthetic_rows
from cpo_ray.data.tokenization import encode, train_tokenizer
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.records import Group, Tokens
from cpo_ray.sampling import scoring

VOCABULARY, PROMPTS, ROWS = 512, 8, 4000
TEMPLATES = "{context}\n{instruction}\n", "Question: {instruction} {context}\nAnswer: "
FAULTS = "weights", "tokenizer", "template", "truncation"
TRAIN_STEPS = 400
SCALE = 6.0  # standard deviation of a random weight times the square root of the width: large, so that rounding is


@dataclass(frozen=True)
class Texts:
    """Instruction data, and two tokenizers."""

    rows: list[InstructionRow]
    tokenizers: tuple[Any, Any]

    def encode(
        self, rows: Sequence[int], responses: Sequence[str], tokenizer: int, template: int
    ) -> list[tuple[Tokens, Tokens]]:
        """(prompt, response with EOS) of each row, with these responses."""
        tok, found = self.tokenizers[tokenizer], [self.rows[r] for r in rows]
        prompts = [TEMPLATES[template].format(context=row.context, instruction=row.instruction) for row in found]
        ids = encode(tok, prompts, special=False), encode(tok, responses, special=False)
        return [(prompt, [*response, tok.eos_token_id]) for prompt, response in zip(*ids, strict=True)]


def read_texts() -> Texts:
    """Texts of the synthetic task, a tokenizer trained on all of them, and another on the responses."""
    rows = list(itertools.islice(synthetic_rows(17), ROWS))
    prompts = [TEMPLATES[0].format(context=row.context, instruction=row.instruction) for row in rows]
    answers = [row.response for row in rows]
    first = train_tokenizer([p + a for p, a in zip(prompts, answers, strict=True)], VOCABULARY)
    return Texts(rows, (first, train_tokenizer(answers, VOCABULARY - 64)))


def make_model(seed: int, layers: int, width: int, scale: float) -> PreTrainedModel:
    """A Llama with random weights in bf16, of which no seed gives the same."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=512, tie_word_embeddings=True,
        initializer_range=scale / width**0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    use_tree_attention(model)
    return model


def load_model(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, use_safetensors=True).eval()
    use_tree_attention(model)
    return model


def train(folder: Path, texts: Texts, layers: int, width: int) -> None:
    """Write a model that is trained on the texts by next-token loss, in float32."""
    pairs = texts.encode(range(len(texts.rows)), [row.response for row in texts.rows], 0, 0)
    model, draw = make_model(0, layers, width, 0.02 * width**0.5).float().train(), random.Random(1)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(TRAIN_STEPS):
        batch = [pairs[row] for row in draw.sample(range(len(pairs)), 16)]
        packed = pack_groups([prompt[:1] for prompt, _ in batch], [[prompt[1:] + gold] for prompt, gold in batch])
        loss = -candidate_logps(model, packed).sum() / sum(len(prompt) + len(gold) - 1 for prompt, gold in batch)
        adam.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30) * (1 - step / TRAIN_STEPS)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    sys.stderr.write(f"trained to {loss.item():.2f} nats per token\n")
    model.save_pretrained(folder)


def make_groups(texts: Texts, draw: random.Random) -> tuple[list[Group], list[int]]:
    """Groups of PROMPTS rows with negatives, not scored, and the rows."""
    rows = draw.sample(range(len(texts.rows)), PROMPTS)
    pairs = texts.encode(rows, [texts.rows[r].response for r in rows], 0, 0)
    golds, eos = [gold for _, gold in pairs], texts.tokenizers[0].eos_token_id
    groups = []
    for row, (prompt, gold) in zip(rows, pairs, strict=True):
        others = draw.sample([other for other in golds if other is not gold], 3)
        edits = [_edit(gold, draw, eos) for _ in range(5)]
        cuts = [[*gold[: draw.randint(1, len(gold) - 2)], eos] for _ in range(3)]
        groups.append(_group(str(row), prompt, [gold, *others, *edits, *cuts]))
    return groups, rows


def score_wrongly(
    name: str, model: PreTrainedModel, other: PreTrainedModel, groups: list[Group], rows: list[int], texts: Texts
) -> list[Group]:
    """The groups with the scores of a reference that differs in one thing."""
    prompts, candidates = [g["prompt_ids"] for g in groups], [g["candidate_ids"] for g in groups]
    if name in ("tokenizer", "template"):
        choice = (1, 0) if name == "tokenizer" else (0, 1)
        for b, row in enumerate(rows):
            tok = texts.tokenizers[0]
            responses = [tok.decode(c[:-1]) for c in candidates[b]]
            pairs = texts.encode([row] * len(responses), responses, *choice)
            prompts[b], candidates[b] = pairs[0][0], [response for _, response in pairs]
    if name == "truncation":
        prompts = [prompt[-(len(prompt) // 2) :] for prompt in prompts]
    scored = [_group(g["id"], p, c) for g, p, c in zip(groups, prompts, candidates, strict=True)]
    scoring.score(other if name == "weights" else model, scored)
    return [{**g, "ref_logps": s["ref_logps"]} for g, s in zip(groups, scored, strict=True)]


def _group(name: str, prompt: Tokens, candidates: list[Tokens]) -> Group:
    kinds = ["gold", *["batch"] * (len(candidates) - 1)]
    ranks = list(range(len(candidates)))
    return {
        "id": name, "prompt": "", "prompt_ids": prompt, "candidate_kind": kinds, "candidate_ids": candidates,
        "candidate_text": [], "similarity": [], "rank": ranks, "ref_logps": [], "ref_spread": None,
    }  # fmt: skip


def _edit(gold: Tokens, draw: random.Random, eos: int) -> Tokens:
    """The gold with 15% of its tokens replaced, never by EOS."""
    edited = list(gold)
    for position in draw.sample(range(len(gold) - 1), max(1, round(0.15 * (len(gold) - 1)))):
        edited[position] = draw.choice([token for token in range(VOCABULARY) if token not in (eos, gold[position])])
    return edited
