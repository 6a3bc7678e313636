"""DeepSpeed's engine: start it, step it, export its weights. The only file that imports DeepSpeed."""

import argparse
import fcntl
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import cpp_extension
from transformers import PreTrainedModel

from cpo_ray.config import TrainingConfig
from cpo_ray.objective.adapters import has_adapter, is_adapter_weight, set_adapter_dropout
from cpo_ray.objective.architectures import layout_of
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.cost import model_shape
from cpo_ray.objective.head import lm_head
from cpo_ray.objective.logprobs import balanced_logps, sample_edges
from cpo_ray.objective.packing import PackedGroups
from cpo_ray.objective.pretrained import train_mode
from cpo_ray.objective.routers import Routers, find_routers, router_notice
from cpo_ray.training.layout import settle_on_workers
from cpo_ray.training.policy_files import load_policy, write_policy
from cpo_ray.training.task import Task


class Policy(nn.Module):
    """The module that DeepSpeed wraps: from packed groups to log-probs."""

    def __init__(self, model: PreTrainedModel, routers: Routers | None = None, *, dropout: bool = False) -> None:
        """routers: of the model, if their auxiliary loss is wanted. dropout: whether training mode has the model's own dropout.

        An adapter's own dropout it always has.
        """
        super().__init__()
        self.model = model
        self.routers = routers
        self.dropout = dropout
        self.shape = model_shape(model)  # before ZeRO-3 partitions the weights
        self.nonfinite_gradients = torch.zeros((), device=model.device)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._count_nonfinite)
        if has_adapter(model):
            self.register_state_dict_post_hook(_keep_adapter)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "Policy":
        """Training mode as far as dropout is wanted, or evaluation mode, without any."""
        super().train(mode)
        if mode and not self.dropout:
            train_mode(self.model)
            set_adapter_dropout(self.model, training=True)
        return self

    def forward(self, packed: PackedGroups, uniform_EN: Tensor | None = None) -> Any:
        """Log-probs, (B, K) float32, nats, and the routers' auxiliary loss or None.

        With `uniform_EN`: tokens sampled from the model at the edges instead, (E, N).
        """
        if uniform_EN is not None:
            return sample_edges(self.model, packed, uniform_EN)
        return balanced_logps(self.model, packed, self.routers)

    def _count_nonfinite(self, gradient: Tensor) -> None:
        """Count gradients that are not finite, because DeepSpeed would take the step. Does not wait for the device.

        A sum is finite only if every term is, and costs a twentieth of checking each element.
        """
        self.nonfinite_gradients += ~gradient.sum(dtype=torch.float32).isfinite()


def _keep_adapter(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
    """What a checkpoint holds of the weights, with an adapter: that alone."""
    for name in [name for name in state if not is_adapter_weight(name)]:
        del state[name]


def start_engine(task: Task, notify: Callable[[str], None], *, universal: bool = False) -> Any:
    """Load the model and pass it to DeepSpeed with AdamW. Uses the process group that Ray Train has started.

    notify: called with a line for the user if attention or the layout of packed rows is not the fastest. universal: a
    checkpoint in DeepSpeed's universal form will be loaded.
    """
    import deepspeed  # here, because the import takes seconds and the driver never needs it

    load_extension()
    model = load_policy(task, notify)
    model.to("cuda" if task.cuda else "cpu")
    reason = use_tree_attention(model)
    if reason is not None and task.cuda:
        notify(f"{reason}; SDPA with a dense mask is used")
    settle_on_workers(model, task, notify)
    if task.training.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    balance = task.training.router_auxiliary_loss
    line = router_notice(model, balance)
    if line is not None:
        notify(line)
    dropout = task.training.dropout == "model"
    policy = Policy(model, find_routers(model) if balance else None, dropout=dropout).train()
    if task.training.zero_stage == 3:
        # The LM head is used outside its own module's forward, so ZeRO-3 would not gather it.
        for parameter in [] if layout_of(model).own_logits else lm_head(model).tensors:
            deepspeed.zero.register_external_parameter(policy, parameter)
    engine, *_ = deepspeed.initialize(
        model=policy,
        model_parameters=parameter_groups(policy, task.training.weight_decay),
        config=deepspeed_config(task.training, dist.get_world_size()) | {"checkpoint": {"load_universal": universal}},
        dist_init_required=False,
    )
    return engine


@cache
def load_extension() -> None:
    """Build or load DeepSpeed's C++ extension for CPU workers, one process of this machine at a time. Once per process.

    torch guards a build with a lock file. A process that is killed leaves it behind, and every later build waits forever.
    Our lock (flock) is released when its process dies, and only we use this folder, so a lock file found here is stale.
    """
    communication: Any = importlib.import_module("deepspeed.comm.torch")
    folder = extension_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    # Use our own ninja, whatever the PATH: another version cannot read its build log and would rebuild.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (folder / "cpo_ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink()
        extension = communication.build_shm_op()
    # `deepspeed.initialize` would build again outside our lock: return the loaded extension instead.
    communication.build_shm_op = lambda: extension


def extension_folder() -> Path:
    """Build folder of the extension, one per installation, because torch rebuilds if the paths of its headers differ."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    installation = hashlib.sha256(f"{torch.__version__} {sys.prefix}".encode()).hexdigest()[:16]
    name = f"cpo_ray-{installation}"
    return root if root.name == name else root / name  # a child inherits the variable that `load_extension` has set


def deepspeed_config(training: TrainingConfig, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `training`. Without a scheduler: `schedule.py` sets the learning rate.

    The optimizer is torch's AdamW, because DeepSpeed's own is one more extension to build on every node.
    """
    adam = {"lr": training.learning_rate, "betas": list(training.betas), "torch_adam": True}
    return {
        "train_batch_size": training.prompts_per_step,
        "train_micro_batch_size_per_gpu": training.prompts_per_microbatch,
        "gradient_accumulation_steps": training.prompts_per_step // (workers * training.prompts_per_microbatch),
        "gradient_clipping": training.clip_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": {"stage": training.zero_stage},
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: matrices with weight decay, biases and norms without. An adapter has matrices alone: one group."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def export_policy(engine: Any, task: Task, folder: Path, *, whole: bool = False) -> None:
    """Gather the weights (every worker takes part) and write them on rank 0 as a Hugging Face directory.

    Of an adapter's training: the adapter, with `whole` beside merged weights.
    """
    weights = None
    if engine.zero_optimization_stage() == 3:
        gathered = engine._zero3_consolidated_16bit_state_dict(  # noqa: SLF001 - DeepSpeed has no public method for it
            exclude_frozen_parameters=task.adapter is not None and not whole
        )
        weights = {name.removeprefix("model."): tensor for name, tensor in (gathered or {}).items()}
    if dist.get_rank() == 0:
        write_policy(engine.module.model, weights, task, folder, whole=whole)


def optimizer_step(engine: Any) -> float:
    """After the last backward pass of a step: clip, update. Returns the global norm of the gradient before clipping."""
    own_norm = 0.0
    if engine.zero_optimization_stage() == 0:  # DeepSpeed has no norm then, and `step` clears the gradients
        own_norm = float(nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
    engine.step()
    norm = engine.get_global_grad_norm()
    return own_norm if norm is None else float(norm)


def to_universal(source: Path, out: Path) -> None:
    """Write DeepSpeed's universal form of a ZeRO checkpoint, which loads on any number of workers."""
    from deepspeed.checkpoint.ds_to_universal import main

    main(
        argparse.Namespace(
            input_folder=str(source),
            output_folder=str(out),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def load_universal(engine: Any, folder: Path, tag: str) -> None:
    """Restore weights and optimizer from DeepSpeed's universal form.

    Corrects two faults of DeepSpeed under ZeRO 3: every parameter group gets the settings of the first, and all parameters
    share one step counter, which each of them would advance.
    """
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    engine.load_checkpoint(str(folder), tag=tag, load_module_strict=not has_adapter(engine.module.model))
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in engine.basic_optimizer.state.values():
        state["step"] = state["step"].clone()
