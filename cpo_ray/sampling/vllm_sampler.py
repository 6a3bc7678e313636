"""The vLLM engine as a Ray Data actor. Only this file and `inference/executors.py` import vllm."""

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Mapping
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from cpo_ray.cluster.resources import engine_gpus
from cpo_ray.config import KindDecoding, RunConfig
from cpo_ray.inference.weight_switching import WeightSwitcher
from cpo_ray.records import Group, Tokens
from cpo_ray.sampling.negatives.autoregressive import (
    autoregressive_negative,
    sample_distinct,
    sample_limit,
    sampling_parameters,
)
from cpo_ray.sampling.time_shares import TimeShares
from cpo_ray.sampling.units import Unit, add_candidates, add_work, read_units, write_units

REFERENCE_POLICY = ""  # `policy` of a unit that is sampled from the reference


class VllmSampler:
    """Adds autoregressive negatives to units. Holds one asynchronous vLLM engine for its lifetime.

    Ray Data calls it concurrently for several units. Each row is a separate request, so the engine never idles between units.
    Units of another policy wait until the units in progress are done; then the weights are switched in place.
    """

    def __init__(self, config: RunConfig, reference: Path, eos: int, other_eos: tuple[int, ...] = ()) -> None:
        """Start the engine with the weights of `reference`. Takes about half a minute."""
        self.config, self.eos, self.other_eos = config, eos, other_eos
        set_environment(config.cluster.threads_per_worker)
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**engine_arguments(config, reference))
        offline = UsageContext.LLM_CLASS  # vLLM's larger limit of tokens per step, for offline work
        self.llm = AsyncLLM.from_engine_args(arguments, usage_context=offline)
        self.stopping = threading.Event()
        _exit_with(self.llm.engine_core.resources.engine_manager.sentinels(), self.stopping)
        self.vocabulary: int = self.llm.model_config.get_vocab_size()
        self.switcher = WeightSwitcher(REFERENCE_POLICY, partial(_switch_weights, self.llm, reference))
        self.shares = TimeShares()
        self.requests = itertools.count()

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Sample for all rows of the batch's units concurrently."""
        from vllm.v1.engine.exceptions import EngineDeadError

        units = read_units(batch)
        try:
            await asyncio.gather(*map(self._sample, units))
        except EngineDeadError:
            os._exit(1)  # as `_exit_with` does, which may be slower
        yield write_units(units)

    def __del__(self) -> None:
        """Shut down the engine's process with the actor. (If the actor is killed, that process exits by itself.)"""
        if hasattr(self, "stopping"):
            self.stopping.set()
            self.llm.shutdown()

    async def _sample(self, unit: Unit) -> None:
        """Sample for all rows of a unit concurrently."""
        sampling = self.config.sampling
        decodings, wanted = sampling.sampled, sampling.negatives.by_kind
        counts = {kind: wanted[kind] for kind in decodings}
        greedy = [kind for kind, decoding in decodings.items() if decoding.is_greedy]
        async with self.switcher.using(unit["policy"]):
            with self.shares.unit() as share:
                sampled = await asyncio.gather(
                    *(
                        sample_distinct(
                            partial(self._generate, decodings, unit["seed"], group),
                            counts,
                            group["candidate_ids"],
                            sampling.redraws,
                            greedy,
                        )
                        for group in unit["groups"]
                    )
                )
                seconds = share()
        total = sum(samples.tokens.total() for samples in sampled)
        for kind in counts:
            for group, samples in zip(unit["groups"], sampled, strict=True):
                add_candidates(group, kind, [tokens for name, tokens in samples.kept if name == kind])
            redraws = sum(samples.redraws[kind] for samples in sampled)
            tokens = sum(samples.tokens[kind] for samples in sampled)
            add_work(unit, kind, redraws=redraws, tokens=tokens, seconds=seconds * tokens / total)

    async def _generate(
        self, decodings: Mapping[str, KindDecoding], seed: int, group: Group, kind: str, count: int, attempt: int
    ) -> list[Tokens]:
        """`count` samples of a kind for one row's prompt."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        max_tokens = sample_limit(group["candidate_ids"][0], self.eos, self.config.data.max_response_tokens)
        parameters = sampling_parameters(
            kind,
            decodings[kind],
            max_tokens,
            self.eos,
            seed,
            group["id"],
            self.vocabulary,
            count,
            attempt,
            self.other_eos,
        )
        samples: list[Any] = []
        async for output in self.llm.generate(
            tokens_input(group["prompt_ids"]),
            SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY),
            str(next(self.requests)),
        ):
            samples += output.outputs
        samples.sort(key=lambda sample: sample.index)
        return [
            autoregressive_negative(sample.token_ids, sample.finish_reason, self.eos, self.other_eos)
            for sample in samples
        ]


def engine_arguments(config: RunConfig, reference: Path) -> dict[str, Any]:
    """vLLM's engine arguments, for this actor and for the benchmark's baseline."""
    engine, on_cpu = config.sampling.engine, not config.cluster.uses_cuda
    shares_card = (
        0 < engine_gpus(config) < 1
    )  # then what is left of the card is known, and profiling would count the others too
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
        "block_size": 32 if on_cpu else None,  # prefixes are shared in whole blocks; vLLM's default on CPU is 128
        "enforce_eager": on_cpu,
        # With chunked prefill vLLM 0.32 rewinds the generator of a seeded request, which CPU generators do not support.
        "enable_chunked_prefill": not on_cpu,
        "tensor_parallel_size": workers,
        "distributed_executor_backend": f"cpo_ray.inference.executors.{'OneWorker' if workers == 1 else 'SeveralWorkers'}",
        "worker_extension_cls": "cpo_ray.inference.vllm_worker.SwitchingWorker",
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30) if on_cpu or shares_card else None,
        "gpu_memory_utilization": engine.memory_share,
        "disable_log_stats": True,
    }


def set_environment(threads: int) -> None:
    """Set what vLLM reads at import. Threads are not bound to cores, which are shared with the other actors."""
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(threads),
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
    )


def _exit_with(sentinels: list[int], stopping: threading.Event) -> None:
    """Exit this process when a process of the engine exits, unless `stopping` is set. sentinels: of the engine's processes.

    Ray Data replaces a crashed actor and retries its units. When the engine dies, vLLM raises an error in requests for
    samples, but not in a request that switches weights.
    """

    def watch() -> None:
        wait(sentinels)
        if not stopping.is_set():
            os._exit(1)

    threading.Thread(target=watch, name="exit-with-engine", daemon=True).start()


async def _switch_weights(llm: Any, reference: Path, policy: str) -> None:
    """Load the weights of the model directory `policy` into the running engine. No request is running."""
    await llm.pause_generation(mode="wait")  # also drops the prefix cache, which belongs to the old weights
    await llm.collective_rpc("switch_weights", args=(policy or str(reference),))
    await llm.resume_generation()
