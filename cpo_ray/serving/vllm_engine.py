"""Ray's vLLM engine with a shorter start, or shared by several models. Loaded by name in the replicas, nowhere else.

Importing vLLM costs each process some ten CPU-seconds, which is nearly all that starting a small model costs. Ray and vLLM
spend four processes on an engine; two do.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

from cpo_ray.cluster.loopback import keep_serve_on_loopback
from cpo_ray.inference.weight_switching import Turns
from cpo_ray.serving.ingress import Ingress

MODELS_VARIABLE = "CPO_RAY_SHARED_MODELS"


class LeanEngine(VLLMEngine):
    """One process for the replica, one for the engine."""

    async def start(self) -> None:
        """Start without the task that downloads the model: a model is a directory here."""
        keep_serve_on_loopback()
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


class SharedEngine(LeanEngine):
    """One engine for several models: the weights of the one that is asked next are loaded into it in place.

    `MODELS_VARIABLE` holds the models, name -> directory, as JSON; the first is what the engine starts with.
    """

    def __init__(self, llm_config: Any) -> None:
        super().__init__(llm_config)
        self.folders: dict[str, str] = json.loads(os.environ[MODELS_VARIABLE])
        self.turns = Turns(next(iter(self.folders)), self.switch)

    async def start(self) -> None:
        """Start with the first model's weights, under its name."""
        await super().start()
        self._rename(self.turns.shown)

    async def switch(self, model: str) -> None:
        """Load the weights of `model`. Nothing is generating: see `Turns`."""
        await self.pause(mode="abort")  # requests that were given up; and what is cached belongs to the old weights
        await self.collective_rpc("switch_weights", args=(self.folders[model],))
        self._rename(model)
        await self.resume()

    async def check_health(self) -> None:
        """Unhealthy, so that Serve starts the replica anew, also where a switch failed half-way."""
        if self.turns.broken is not None:
            raise self.turns.broken
        await super().check_health()

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """As vLLM's, with the weights of the model that the request names."""
        async with self.turns.turn(request.model):
            async for answer in super().completions(request, raw_request_info):
                yield answer

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """As vLLM's, with the weights of the model that the request names."""
        async with self.turns.turn(request.model):
            async for answer in super().chat(request, raw_request_info):
                yield answer

    def _rename(self, model: str) -> None:
        """vLLM refuses a request for any other name, so that no answer can come from the wrong weights."""
        self._oai_models.base_model_paths[0].name = model


class SharedIngress(Ingress):
    """The API of one engine that answers to several names."""

    def __init__(self, llm_deployments: Any, model_cards: Any, *, names: list[str], **options: Any) -> None:
        (engine,), (card,) = llm_deployments.values(), model_cards.values()
        cards = {name: card.model_copy(update={"id": name}) for name in names}
        super().__init__(dict.fromkeys(names, engine), cards, **options)
