"""Memory of one GPU during training: the model's states, activations, and what DeepSpeed allocates besides."""

from dataclasses import dataclass

from cpo_ray.config import TrainingConfig
from cpo_ray.planning.activations import BYTES
from cpo_ray.planning.model_size import ModelSize

LM_HEAD_BYTES = 2 * 4 * 2**23  # a chunk of float32 logits and its gradient, see objective/logprobs.py
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per number: 4 bits; a byte per block of 64; a float32 per 256 blocks
# DeepSpeed 0.19's defaults (deepspeed/runtime/zero/config.py), which `training/deepspeed_engine.py` does not change:
REDUCE_BUCKET = 500_000_000  # reduce_bucket_size: numbers of the buffer in which gradients are summed over workers
LIVE_PARAMETERS = (
    1_000_000_000  # stage3_max_live_parameters: gathered weights that ZeRO 3 keeps before it releases some
)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU during training. `activations` and `buckets` are there in the backward pass, `update` after it."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buckets: float
    update: float

    @property
    def total(self) -> float:
        """The peak, in bytes: weights, gradients and optimizer, and the larger of backward pass and optimizer's update."""
        passing = max(self.activations + self.buckets, self.update)
        return self.weights + self.gradients + self.optimizer + passing


def training_memory(
    shape: ModelSize,
    training: TrainingConfig,
    zero_stage: int,
    tokens: float,
    *,
    lazy: bool = False,
    quantize: str | None = None,
) -> TrainingMemory:
    """Bytes per GPU. tokens: of one microbatch. lazy: the device's memory is used when it is written, as on a CPU.

    With N parameters, b bytes per number (4 in fp32, 2 in bf16) and W workers: weights b*N, gradients b*N, and Adam's two
    moments 8*N. A float32 copy of the weights, 4*N, is kept in bf16, and by ZeRO 1, 2 and 3 also in fp32. ZeRO 1 divides the
    optimizer by W, 2 also the gradients, 3 also the weights. Gradients are accumulated in the model's precision.

    Buckets: ZeRO 1, 2 and 3 allocate b*5e8 bytes to sum gradients; ZeRO 3 also keeps up to 1e9 gathered weights. Update:
    a float32 gradient of the part that this worker updates (not in fp32 without ZeRO) and torch's Adam, which needs as much.

    With an adapter, gradients, optimizer and update are those of its parameters, and N in the weights includes them.

    Activations: see `activation_bytes`. The reference needs no memory: its log-probs are in the groups.
    """
    b, n, w = BYTES[training.precision], shape.parameters, training.worker_count
    trained = shape.trained
    copied = training.precision == "bf16" or zero_stage >= 1
    own = trained / (w if zero_stage >= 1 else 1)  # of the parameters that this worker updates
    bucket = min(REDUCE_BUCKET, trained) if lazy else REDUCE_BUCKET
    gathered = min(LIVE_PARAMETERS, n) if zero_stage == 3 else 0
    return TrainingMemory(
        weights=weight_bytes(shape, training, quantize) / (w if zero_stage >= 3 else 1),
        gradients=b * trained / (w if zero_stage >= 2 else 1),
        optimizer=(12 if copied else 8) * own,
        activations=activation_bytes(shape, training, tokens),
        buckets=b * (bucket + gathered) if zero_stage >= 1 else 0,
        update=(8 if training.precision == "bf16" or zero_stage >= 1 else 4) * own,
    )


def weight_bytes(shape: ModelSize, training: TrainingConfig, quantize: str | None = None) -> float:
    """Bytes of all weights, with those of an adapter: b*N; in nf4, a linear layer's take half a byte and its blocks' scales."""
    b, adapter = BYTES[training.precision], shape.adapter
    if adapter is None:
        return b * shape.parameters
    linear = NF4_BYTES if quantize == "nf4" else b
    return b * (shape.parameters - adapter.linear + adapter.trained) + linear * adapter.linear


def activation_bytes(shape: ModelSize, training: TrainingConfig, tokens: float) -> float:
    """Bytes kept for the backward pass of `tokens` tokens.

    L blocks of `planning/activations.py`; with activation checkpointing, each block's input b*D, and one block that is
    computed again. Besides, for the LM head, a chunk of logits and, if it is trained, its weight's gradient in float32, 4*V*D.
    An adapter's own activations, a few numbers of its rank per token, are not counted.
    """
    blocks = shape.layers * shape.block_bytes
    if training.activation_checkpointing:
        blocks = shape.layers * BYTES[training.precision] * shape.hidden_size + shape.block_bytes
    head_gradient = 4 * shape.vocabulary * shape.hidden_size if shape.adapter is None else 0
    return tokens * blocks + LM_HEAD_BYTES + head_gradient
