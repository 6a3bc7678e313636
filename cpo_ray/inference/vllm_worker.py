"""What the engine's workers learn in addition: to take another model's weights without a restart.

vLLM mixes `SwitchingWorker` into its own worker by name (`worker_extension_cls`); it imports nothing of vLLM.
"""

from collections import Counter
from typing import Any

import torch

from cpo_ray.cluster.loopback import LoopbackWorker


class SwitchingWorker(LoopbackWorker):
    """Mixed into vLLM's worker, whose `reload_weights` and `model_runner` it uses. Called through `collective_rpc`."""

    def switch_weights(self, folder: str) -> None:
        """Load the weights of the Hugging Face directory `folder` in place: same architecture, names, shapes and dtype.

        Nothing may be generating, and the caller drops the prefix cache, which belongs to the old weights.
        """
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        repack_tied_layers(worker.model_runner.get_model())


def repack_tied_layers(model: torch.nn.Module) -> int:
    """Prepare again, from its new values, every layer whose weight is another layer's too; return how many there are.

    vLLM 0.32 prepares a layer's weight for its kernel when the layer's own tensors have been loaded. A tied LM head has
    none in the checkpoint: it shares the new embedding, but on CPU goes on multiplying with the copy of the old one that
    was packed when the engine started.
    """
    prepared: list[Any] = [module for module in model.modules() if hasattr(module, "quant_method")]
    weights = [dict(module.named_parameters(recurse=False)).get("weight") for module in prepared]
    holders = Counter(id(weight) for weight in weights if weight is not None and weight.numel())
    tied = [module for module, weight in zip(prepared, weights, strict=True) if holders[id(weight)] > 1]
    for module in tied:
        module.quant_method.process_weights_after_loading(module)
    return len(tied)
