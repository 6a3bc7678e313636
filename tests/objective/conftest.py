import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY, EOS = 97, 0


def tiny_model(name, dtype):
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_head=2, n_layer=2, n_positions=128,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64,
            tie_word_embeddings=name == "llama-tied", max_position_embeddings=128,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    return model.to(dtype).eval()


@pytest.fixture(params=["gpt2", "llama", "llama-tied"])
def model_name(request):
    return request.param


def random_groups(seed, groups=5):
    """Groups like those of stage `sampling`: gold, truncations, a meanfield-like edit, other responses, a copy, cuts."""
    draw = random.Random(seed)

    def tokens(low, high):
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(low, high))]

    prompts, candidates = [], []
    for _ in range(groups):
        gold = [*tokens(3, 12), EOS]
        edited = list(gold)
        edited[draw.randrange(len(gold) - 1)] = draw.randrange(1, VOCABULARY)
        prompts.append(tokens(1, 15))
        candidates.append(
            [
                gold,
                [*gold[:1], EOS],
                [*gold[:2], EOS],
                edited,
                [*tokens(1, 9), EOS],
                list(gold),
                gold[:-1],
                tokens(1, 1),
            ]
        )
    return prompts, candidates


def separate_logps(model, prompts, candidates):
    """Log-probs by their definition: one unpadded forward pass per candidate, full softmax."""
    rows = []
    for prompt, group in zip(prompts, candidates, strict=True):
        row = []
        for candidate in group:
            logp = model(torch.tensor([prompt + candidate])).logits[0].double().log_softmax(-1)
            row.append(sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(candidate)))
        rows.append(torch.stack(row))
    return torch.stack(rows)
