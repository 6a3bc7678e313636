"""Rows, configurations and limits for tests that draw negatives."""

import pyarrow as pa

from cpo_ray.config import RunConfig
from cpo_ray.records import EXAMPLE_SCHEMA, end_response
from cpo_ray.sampling.negatives.context import NegativeContext
from cpo_ray.sampling.negatives.registry import Limits, load_kinds
from cpo_ray.sampling.units import draw_unit

EOS = 0


def encode(text):
    """A stand-in for a tokenizer: one token per letter; 7 letters and EOS fit."""
    return end_response([1 + ord(letter) % 90 for letter in text], EOS, 8)


LIMITS = Limits(max_tokens=8, eos=EOS, vocabulary=100, encode=encode)


def make_config(**sampling):
    defaults = {"batch_rows": 8, "shard_rows": 16, "negatives": {"batch": 3, "meanfield": 0, "truncation": 2}}
    on_bad_row = sampling.pop("on_bad_row", "error")
    return RunConfig.model_validate(
        {
            "name": "test",
            "data": {"max_response_tokens": 8, "max_prompt_tokens": 8, "on_bad_row": on_bad_row},
            "model": {"context": 32},
            "sampling": defaults | sampling,
        }
    )


def make_table(responses, prompt=(5, 6, 7)):
    rows = [
        {
            "id": f"{number:016x}",
            "source": "test",
            "category": "",
            "prompt": "p",
            "response": str(response),
            "prompt_ids": list(prompt),
            "response_ids": list(response),
        }
        for number, response in enumerate(responses)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def responses(rows):
    return [[1 + row // 10, 11 + row % 10, 3, EOS] for row in range(rows)]


def make_context(gold, others=(), row_id="row", taken=()):
    return NegativeContext(row_id, "p", "r", [5, 6, 7], list(gold), EOS, [t for t in others if t != gold], taken)


def draw(table, start, config):
    """The unit that starts at row `start`."""
    return draw_unit(table, start, config.sampling, config.seed, load_kinds(config.sampling), LIMITS)
