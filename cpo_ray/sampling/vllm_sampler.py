"""The vLLM engine as a Ray Data actor. With `executors.py` the only file of this wing that imports vllm."""

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from cpo_ray.config import RunConfig
from cpo_ray.inference.weight_switching import Turns
from cpo_ray.records import Group
from cpo_ray.sampling.negatives.autoregressive import autoregressive_negative, sample_apart, sampling_parameters
from cpo_ray.sampling.negatives.context import Tokens
from cpo_ray.sampling.time_shares import Shares
from cpo_ray.sampling.units import Unit, add, note, read_units, write_units

REFERENCE = ""  # a unit's policy where it is to be sampled from the reference


class Engine:
    """Adds autoregressive negatives to units. Holds one asynchronous vLLM engine for its lifetime.

    Ray Data calls it for several units at a time. Every row of each is a request of its own, so the engine goes from unit to
    unit without a pause. Units with another policy wait until those under way are done; then the weights are changed in place.
    """

    def __init__(self, config: RunConfig, reference: Path, eos: int) -> None:
        """Start the engine with the weights of `reference`; about half a minute."""
        self.config, self.eos = config, eos
        set_environment(config.cluster.threads_per_worker)
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**engine_arguments(config, reference))
        whole = UsageContext.LLM_CLASS  # as many tokens to a step as vLLM gives work that nobody waits for
        self.llm = AsyncLLM.from_engine_args(arguments, usage_context=whole)
        self.ending = threading.Event()
        _end_with(self.llm.engine_core.resources.engine_manager.sentinels(), self.ending)
        self.vocabulary: int = self.llm.model_config.get_vocab_size()
        self.turns = Turns(REFERENCE, partial(_change_weights, self.llm, reference))
        self.shares = Shares()
        self.requests = itertools.count()

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Sample for every row of the batch's units at once."""
        from vllm.v1.engine.exceptions import EngineDeadError

        units = read_units(batch)
        try:
            await asyncio.gather(*map(self._sample, units))
        except EngineDeadError:
            os._exit(1)  # see `_end_with`, which may be slower
        yield write_units(units)

    def __del__(self) -> None:
        """End the engine's own process with the actor (where the actor is killed, that process sees it)."""
        if hasattr(self, "ending"):
            self.ending.set()
            self.llm.shutdown()

    async def _sample(self, unit: Unit) -> None:
        """Sample for all rows, each at its own pace."""
        negatives = self.config.sampling.negatives.autoregressive
        async with self.turns.turn(unit["policy"]):
            with self.shares.unit() as share:
                made = await asyncio.gather(
                    *(
                        sample_apart(
                            partial(self._generate, unit["seed"], group),
                            negatives,
                            group["candidate_ids"],
                            self.config.sampling.redraws,
                        )
                        for group in unit["groups"]
                    )
                )
                seconds = share()
        for group, samples in zip(unit["groups"], made, strict=True):
            add(group, "autoregressive", samples.kept)
        redraws, tokens = sum(samples.redraws for samples in made), sum(samples.tokens for samples in made)
        note(unit, "autoregressive", redraws=redraws, tokens=tokens, seconds=seconds)

    async def _generate(self, seed: int, group: Group, count: int, attempt: int) -> list[Tokens]:
        """`count` samples of one row's prompt."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        longest = self.config.data.max_response_tokens
        parameters = sampling_parameters(
            self.config.sampling, longest, self.eos, seed, group["id"], self.vocabulary, n=count, attempt=attempt
        )
        samples: list[Any] = []
        async for output in self.llm.generate(
            tokens_input(group["prompt_ids"]),
            SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY),
            str(next(self.requests)),
        ):
            samples += output.outputs
        samples.sort(key=lambda sample: sample.index)
        return [autoregressive_negative(sample.token_ids, sample.finish_reason, self.eos) for sample in samples]


def engine_arguments(config: RunConfig, reference: Path) -> dict[str, Any]:
    """vLLM's engine arguments, for this actor and for what it is measured against."""
    engine, on_cpu = config.sampling.engine, config.cluster.gpus_per_worker == 0
    workers = 1 if on_cpu else engine.tensor_parallel
    return {
        "model": str(reference),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "dtype": "float32" if config.training.precision == "fp32" else "bfloat16",
        "seed": config.seed,
        "max_num_seqs": engine.max_sequences,
        "enable_prefix_caching": True,
        "block_size": 32 if on_cpu else None,  # only whole blocks are shared; on CPU vLLM's own choice is 128
        "enforce_eager": on_cpu,
        # vLLM 0.32 takes back a seeded draw when a prompt is cut between two steps, which CPU generators cannot do.
        "enable_chunked_prefill": not on_cpu,
        "tensor_parallel_size": workers,
        "distributed_executor_backend": f"cpo_ray.inference.executors.{'OneWorker' if workers == 1 else 'SeveralWorkers'}",
        "worker_extension_cls": "cpo_ray.inference.vllm_worker.SwitchingWorker",
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30) if on_cpu else None,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "disable_log_stats": True,
    }


def set_environment(threads: int) -> None:
    """Settings that vLLM reads when it is imported. Cores are shared with the other actors, so no thread is bound."""
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(threads),
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
    )


def _end_with(processes: list[int], ending: threading.Event) -> None:
    """End this process when one of the engine's does, unless it was told to. processes: their sentinels.

    Ray Data starts another actor, and repeats what was under way, where one has crashed. vLLM tells those who wait for samples
    that the engine is dead, but not those who wait for it to change its weights.
    """

    def watch() -> None:
        wait(processes)
        if not ending.is_set():
            os._exit(1)

    threading.Thread(target=watch, name="end-with-engine", daemon=True).start()


async def _change_weights(llm: Any, reference: Path, policy: str) -> None:
    """Load the weights of the model directory `policy` into the running engine. Nothing is generating: see `Turns`."""
    await llm.pause_generation(mode="wait")  # drops the prefix cache, too: it belongs to the old weights
    await llm.collective_rpc("switch_weights", args=(policy or str(reference),))
    await llm.resume_generation()
