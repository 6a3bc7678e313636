"""The vLLM engine as a Ray Data actor. The only file of this wing that imports vllm."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from cpo_ray.config import RunConfig
from cpo_ray.records import Group
from cpo_ray.sampling.autoregressive import autoregressive_negative, repeated, sampling_parameters
from cpo_ray.sampling.source import Tokens
from cpo_ray.sampling.units import Unit, add, note, read_units, write_units


class Engine:
    """Adds autoregressive negatives to units. Holds one `vllm.LLM` for its lifetime."""

    def __init__(self, config: RunConfig, reference: Path, eos: int) -> None:
        """Start the engine; about half a minute."""
        self.config, self.eos = config, eos
        on_cpu = config.cluster.gpus_per_worker == 0
        _set_environment(config.cluster.threads_per_worker)
        from vllm import LLM

        engine = config.sampling.engine
        self.llm = LLM(
            str(reference),
            skip_tokenizer_init=True,
            trust_remote_code=False,
            load_format="safetensors",
            generation_config="vllm",
            dtype="float32" if config.training.precision == "fp32" else "bfloat16",
            seed=config.seed,
            max_num_seqs=engine.max_sequences,
            enable_prefix_caching=True,
            enforce_eager=on_cpu,
            # vLLM 0.32 takes back a seeded draw when a prompt is cut between two steps, which CPU generators cannot do.
            enable_chunked_prefill=not on_cpu,
            distributed_executor_backend="mp",
            worker_extension_cls="cpo_ray.sockets.LoopbackWorker",
            tensor_parallel_size=1 if on_cpu else engine.tensor_parallel,
            kv_cache_memory_bytes=int(engine.kv_cache_gib * 2**30) if on_cpu else None,
            gpu_memory_utilization=engine.gpu_memory_utilization,
        )
        # Where the engine's worker dies, the actor goes too: Ray Data starts another and repeats what was under way.
        self.llm.llm_engine.model_executor.register_failure_callback(lambda: os._exit(1))
        self.vocabulary: int = self.llm.llm_engine.model_config.get_vocab_size()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Sample for every row of the batch's units at once."""
        units = read_units(batch)
        self._sample(units)
        return write_units(units)

    def __del__(self) -> None:
        """End the engine's own process with the actor (where the actor is killed, the process sees its pipe close)."""
        if hasattr(self, "llm"):
            self.llm.llm_engine.engine_core.shutdown()

    def _sample(self, units: list[Unit]) -> None:
        """Sample for all rows at once, then again for those whose samples the group has already, and so on."""
        began = time.perf_counter()
        groups = [group for unit in units for group in unit["groups"]]
        samples: list[list[Tokens]] = [[[]] * self.config.sampling.negatives.autoregressive for _ in groups]
        wanted = {row: list(range(len(places))) for row, places in enumerate(samples)}
        redraws = tokens = 0
        for attempt in range(1 + self.config.sampling.redraws):
            redraws += sum(map(len, wanted.values())) if attempt else 0
            for row, drawn in self._generate(groups, wanted, attempt).items():
                tokens += sum(map(len, drawn))
                for place, sample in zip(wanted[row], drawn, strict=True):
                    samples[row][place] = sample
            again = {row: repeated(samples[row], groups[row]["candidate_ids"]) for row in wanted}
            wanted = {row: places for row, places in again.items() if places}
            if not wanted:
                break
        for group, drawn in zip(groups, samples, strict=True):
            add(group, "autoregressive", drawn)
        note(units[0], "autoregressive", redraws=redraws, tokens=tokens, seconds=time.perf_counter() - began)

    def _generate(self, groups: list[Group], wanted: dict[int, list[int]], attempt: int) -> dict[int, list[Tokens]]:
        """As many samples for each row as it wants."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        config, most = self.config, self.config.data.max_response_tokens
        parameters: list[dict[str, Any]] = [
            sampling_parameters(
                config.sampling,
                most,
                self.eos,
                config.seed,
                groups[row]["id"],
                self.vocabulary,
                n=len(places),
                attempt=attempt,
            )
            for row, places in wanted.items()
        ]
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=groups[row]["prompt_ids"]) for row in wanted],
            [SamplingParams(**keywords) for keywords in parameters],
            use_tqdm=False,
        )
        return {
            row: [
                autoregressive_negative(sample.token_ids, sample.finish_reason, self.eos)
                for sample in sorted(output.outputs, key=lambda sample: sample.index)
            ]
            for row, output in zip(wanted, outputs, strict=True)
        }


def _set_environment(threads: int) -> None:
    """Settings that vLLM reads when it is imported.

    The engine's core lives in the actor and only its worker is a process of its own: that one watches a pipe to the
    actor and ends when the actor does, however it ends. Cores are shared with the other actors, so no thread is bound.
    """
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(threads),
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
    )
