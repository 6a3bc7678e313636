"""Ray's vLLM engine with a shorter start. Loaded by name in the replicas (`RAYLLM_VLLM_ENGINE_CLS`), nowhere else.

Importing vLLM costs each process some ten CPU-seconds, which is nearly all that starting a small model costs. Ray and vLLM
spend four processes on an engine; two do.
"""

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine


class LeanEngine(VLLMEngine):
    """One process for the replica, one for the engine."""

    async def start(self) -> None:
        """Start without the task that downloads the model: a model is a directory here."""
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        """Run a single CPU worker inside the engine's process.

        On CPU machines vLLM gives the worker a process of its own to bind its threads to cores. With
        `VLLM_CPU_OMP_THREADS_BIND=nobind`, as we serve, there is nothing to bind.
        """
        engine_args, frontend_args, engine_config = super()._prepare_engine_config(callback_ctx)
        parallel = engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = "uni"
        return engine_args, frontend_args, engine_config
