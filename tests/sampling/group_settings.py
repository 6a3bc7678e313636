"""Configuration and the user's kinds of negatives for end-to-end tests of groups."""

import pyarrow.compute
import pytest

from cpo_ray.config import RunConfig
from tests.sampling.tiny_reference import CONTEXT, MAX_RESPONSE

KINDS = [
    "gold",
    *["autoregressive"] * 2,
    "greedy",
    *["batch"] * 3,
    *["meanfield"] * 2,
    *["truncation"] * 2,
    "unhelpful",
    "hot",
    "shouted",
]
ROUNDED = 1.1e-5  # similarities have five decimals: noise may change the last one
COUNTS = {kind: KINDS.count(kind) for kind in dict.fromkeys(KINDS[1:])}
SAMPLED = ("autoregressive", "greedy", "hot")  # by vLLM: samples depend on the other requests of a batch
HOT = {"temperature": 2.0, "top_k": 0}
API = {"url": "http://127.0.0.1:9/v1", "model": "some-llm"}  # a test sets the URL of its server


def make_config(**sampling):
    return RunConfig.model_validate(
        {
            "name": "test",
            "data": {"max_prompt_tokens": 40, "max_response_tokens": MAX_RESPONSE, "on_bad_row": "quarantine"},
            "model": {"context": CONTEXT},
            "sampling": {
                "negatives": COUNTS,
                "kinds": {"shouted": "shouting_kinds:shouted", "hot": HOT},
                "unhelpful": API,
                "batch_rows": 16,
                "shard_rows": 32,
                "engine": {"kv_cache_gib": 0.25, "max_sequences": 64},
            }
            | sampling,
        }
    )


KIND_MODULE = """
import time
from pathlib import Path


def shouted(context, rng):
    return context.response.upper()


def mute(context, rng):
    return []


def patient(context, rng):
    while context.id.endswith("{last}") and not Path(__file__).with_name("gate").exists():
        time.sleep(0.1)
    return shouted(context, rng)
"""


def assert_same_groups(one, other):
    drawn = ["id", "prompt_ids", "candidate_kind", "candidate_ids", "rank"]
    assert one.select(drawn).equals(other.select(drawn))
    for name, tolerance in (("ref_logps", 1e-5), ("similarity", ROUNDED)):
        flat = [pyarrow.compute.list_flatten(table[name]).to_pylist() for table in (one, other)]
        assert flat[0] == pytest.approx(flat[1], abs=tolerance)
