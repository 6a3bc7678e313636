"""A vLLM worker extension that loads another model's weights without a restart.

vLLM mixes `SwitchingWorker` into its own worker by dotted name (`worker_extension_cls`). This module does not import vllm.
"""

from collections import Counter
from typing import Any

import torch

from cpo_ray.cluster.loopback import LoopbackWorker


class SwitchingWorker(LoopbackWorker):
    """Mixed into vLLM's worker, whose `reload_weights` and `model_runner` it uses. Called through `collective_rpc`."""

    def switch_weights(self, folder: str) -> None:
        """Load the weights of the Hugging Face directory `folder` in place; architecture, names, shapes and dtype must match.

        No request may be running. The caller must drop the prefix cache, which was computed with the old weights.
        """
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        repack_tied_layers(worker.model_runner.get_model())


def repack_tied_layers(model: torch.nn.Module) -> int:
    """Repack, from its new values, the weight of every layer that shares it with another layer; return their number.

    vLLM 0.32 packs a layer's weight for its kernel when the layer's own tensors are loaded. A tied LM head has no tensor in
    the checkpoint: it shares the new embedding, but on CPU keeps multiplying with the copy of the old embedding that was
    packed at the engine's start.
    """
    prepared: list[Any] = [module for module in model.modules() if hasattr(module, "quant_method")]
    weights = [dict(module.named_parameters(recurse=False)).get("weight") for module in prepared]
    holders = Counter(id(weight) for weight in weights if weight is not None and weight.numel())
    tied = [module for module, weight in zip(prepared, weights, strict=True) if holders[id(weight)] > 1]
    for module in tied:
        module.quant_method.process_weights_after_loading(module)
    return len(tied)
