"""Ray's vLLM engine with a faster start, or shared by several models. Only loaded by dotted name, in Serve's replicas.

Importing vLLM takes each process about ten CPU-seconds, which is most of a small model's start. Ray and vLLM start four
processes per engine; two are enough.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

from cpo_ray.cluster.loopback import keep_serve_on_loopback
from cpo_ray.inference.weight_switching import WeightSwitcher
from cpo_ray.serving.ingress import Ingress

MODELS_VARIABLE = "CPO_RAY_SHARED_MODELS"


class LeanEngine(VLLMEngine):
    """An engine with two processes: the replica and vLLM's engine core."""

    async def start(self) -> None:
        """Start without Ray's task that downloads the model, because models are local directories."""
        keep_serve_on_loopback()
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        """Run a single CPU worker inside the engine's process.

        On CPU machines vLLM starts a separate process for the worker, to bind its threads to cores. With
        `VLLM_CPU_OMP_THREADS_BIND=nobind`, as set in `deployments.py`, that is not needed.
        """
        engine_args, frontend_args, engine_config = super()._prepare_engine_config(callback_ctx)
        parallel = engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = "uni"
        return engine_args, frontend_args, engine_config


class SharedEngine(LeanEngine):
    """One engine for several models: it loads the weights of the requested model in place.

    `MODELS_VARIABLE` holds the models as JSON, name -> directory; the engine starts with the first.
    """

    def __init__(self, llm_config: Any) -> None:
        super().__init__(llm_config)
        self.folders: dict[str, str] = json.loads(os.environ[MODELS_VARIABLE])
        self.switcher = WeightSwitcher(next(iter(self.folders)), self.switch)

    async def start(self) -> None:
        """Start with the first model's weights and name."""
        await super().start()
        self._rename(self.switcher.loaded)

    async def switch(self, model: str) -> None:
        """Load the weights of `model`. `WeightSwitcher` calls this while no request is running."""
        await self.pause(mode="abort")  # aborts cancelled requests and drops the prefix cache of the old weights
        await self.collective_rpc("switch_weights", args=(self.folders[model],))
        self._rename(model)
        await self.resume()

    async def check_health(self) -> None:
        """Raise if the engine is unhealthy or a weight switch failed, so that Serve restarts the replica."""
        if self.switcher.failure is not None:
            raise self.switcher.failure
        await super().check_health()

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """Same as vLLM's, with the weights of the requested model."""
        async with self.switcher.using(request.model):
            async for answer in super().completions(request, raw_request_info):
                yield answer

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """Same as vLLM's, with the weights of the requested model."""
        async with self.switcher.using(request.model):
            async for answer in super().chat(request, raw_request_info):
                yield answer

    def _rename(self, model: str) -> None:
        """Set the only model name that vLLM accepts, so that no answer can come from the wrong weights."""
        self._oai_models.base_model_paths[0].name = model


class SharedIngress(Ingress):
    """The API of one engine that serves several model names."""

    def __init__(self, llm_deployments: Any, model_cards: Any, *, names: list[str], **options: Any) -> None:
        (engine,), (card,) = llm_deployments.values(), model_cards.values()
        cards = {name: card.model_copy(update={"id": name}) for name in names}
        super().__init__(dict.fromkeys(names, engine), cards, **options)
