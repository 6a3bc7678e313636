"""Hypothesis strategies for request bodies: valid, almost valid, and invalid."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VOCABULARY = 1024  # of the requested model; some token ids are outside it

Strategy = st.SearchStrategy[Any]

JSON: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SCALARS: Strategy = st.sampled_from(
    [
        0, 1, -1, 2, 0.5, 1.0, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"),
        2**31 - 1, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**30, -(10**30),
        True, None, "", "1", "nobody", "../../etc/passwd", "a" * 300,
    ]
)  # fmt: skip
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
ODD_TOKENS = st.lists(st.integers(-2, VOCABULARY + 200) | SCALARS, max_size=5)
TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\0", "😀" * 40, "<|endoftext|>", "e\u0301\u202e\ufeff", "x" * 900]
)

WELL_FORMED: dict[str, Strategy] = {  # fields of both routes
    "max_tokens": st.integers(1, 12),
    "n": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 10),
    "length_penalty": st.floats(-10, 10),
    "logit_bias": st.dictionaries(st.integers(0, VOCABULARY - 1).map(str), st.integers(-100, 100), max_size=3),
    "use_beam_search": st.booleans(),
    "stop_token_ids": TOKENS,
    "allowed_token_ids": TOKENS,
    "min_tokens": st.integers(0, 14),
    "ignore_eos": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "return_token_ids": st.booleans(),
    "user": st.text(max_size=5),
}
OF_COMPLETIONS: dict[str, Strategy] = {
    "logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "add_special_tokens": st.booleans(),
}
OF_CHAT: dict[str, Strategy] = {
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "max_completion_tokens": st.integers(1, 12),
}
UNKNOWN = (  # fields of OpenAI's API, of vLLM's, and invented ones, that the endpoint refuses
    "best_of", "suffix", "response_format", "tools", "tool_choice", "functions", "parallel_tool_calls", "store",
    "metadata", "modalities", "service_tier", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs", "prompt_embeds", "prompt_logprobs", "bad_words", "logits_processors", "priority",
    "truncate_prompt_tokens", "chat_template", "chat_template_kwargs", "documents", "kv_transfer_params", "cache_salt",
    "vllm_xargs", "request_id", "lora_request", "", "__proto__",
)  # fmt: skip
CONSTRAINTS: Strategy = st.sampled_from(
    [
        {"regex": "(a+)+$"},
        {"json": {"$ref": "#"}},
        {"type": "json_object"},
        {"choice": []},
        {"grammar": "root ::= root"},
    ]
)
FIELDS = frozenset({"model", "prompt", "messages", *WELL_FORMED, *OF_COMPLETIONS, *OF_CHAT})


def requests(models: Sequence[str]) -> Strategy:
    """Pairs of a route and a body. `models` are served; some bodies name another model."""
    return st.one_of(
        st.tuples(st.just(COMPLETIONS), _valid(_completion(models), WELL_FORMED | OF_COMPLETIONS)),
        st.tuples(st.just(CHAT), _valid(_chat(models), WELL_FORMED | OF_CHAT)),
        st.tuples(st.just(COMPLETIONS), _almost_valid(_completion(models))),
        st.tuples(st.just(CHAT), _almost_valid(_chat(models))),
        st.tuples(st.sampled_from([COMPLETIONS, CHAT]), _invalid()),
    )


def _completion(models: Sequence[str]) -> Strategy:
    prompts = TEXT | TOKENS | st.lists(TEXT, min_size=1, max_size=3) | st.lists(TOKENS, min_size=1, max_size=3)
    return st.fixed_dictionaries({"model": st.sampled_from(models), "prompt": prompts})


def _chat(models: Sequence[str]) -> Strategy:
    role = st.sampled_from(["system", "developer", "user", "user", "user", "assistant"])
    parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), min_size=1, max_size=3)
    optional = {"name": st.text(min_size=1, max_size=5), "type": st.just("text")}
    message = st.fixed_dictionaries({"role": role, "content": TEXT | parts}, optional=optional)
    messages = st.lists(message, min_size=1, max_size=3)
    few = st.integers(1, 12)  # the default is as many as fit
    return st.fixed_dictionaries({"model": st.sampled_from(models), "messages": messages, "max_tokens": few})


def _valid(start: Strategy, fields: dict[str, Strategy]) -> Strategy:
    """Every field is valid by itself; the combination may not be."""
    items = st.one_of(*(st.tuples(st.just(name), values) for name, values in fields.items()))
    return st.builds(lambda body, more: _encode(body | dict(more)), start, st.lists(items, max_size=5))


def _almost_valid(start: Strategy) -> Strategy:
    """A valid body plus one or two fields of any name and value."""
    names = st.sampled_from(sorted(FIELDS | {*UNKNOWN}))
    values = (
        JSON | SCALARS | ODD_TOKENS | st.lists(ODD_TOKENS, max_size=3) | CONSTRAINTS | st.integers(1, 300).map(_nest)
    )
    items = st.lists(st.tuples(names, values), min_size=1, max_size=2)
    return st.builds(lambda body, more: _encode(body | dict(more)), start, items)


def _invalid() -> Strategy:
    """JSON that is not a request, and bytes that are not JSON."""
    deep = st.sampled_from([b"[" * 60_000, b'{"model":' * 20_000, b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"])
    torn = st.sampled_from([b"", b"{", b'{"model": "\\ud800"}', b"\xff\xfe{}", b'{"a":1}{"b":2}', b"NaN", b"0" * 5000])
    return JSON.map(_encode) | st.binary(max_size=60) | deep | torn


def _nest(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _encode(body: Any) -> bytes:
    return json.dumps(body).encode()
