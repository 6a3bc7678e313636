"""The size of the model that a run starts from: by its configured shape, or read from a model without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.config import AdapterConfig, ModelConfig, RunConfig, TrainingConfig
from cpo_ray.errors import ConfigError
from cpo_ray.planning.activations import BYTES, BlockShape, block_bytes, count_block_bytes
from cpo_ray.planning.adapter_size import AdapterSize, LinearLayers, adapter_size, configured_layers, model_layers

HUB_TIMEOUT_S = 10
GUESSED_HEAD = 128  # the head size if only the number of parameters is known


@dataclass(frozen=True)
class ModelSize:
    """A model's size. origin: where it was read.

    block_bytes: activations per token and block, in the precision and with the dropout of the section `training`. adapter: of
    the section `adapter`; None: all parameters are trained. keys: the width of a block's keys, and of its values; None: the
    hidden size.
    """

    parameters: int
    hidden_size: int
    layers: int
    vocabulary: int
    block_bytes: float
    origin: str
    adapter: AdapterSize | None = None
    keys: int | None = None

    @property
    def trained(self) -> int:
        """Parameters that have gradients and an optimizer."""
        return self.parameters if self.adapter is None else self.adapter.trained

    def cache_bytes(self, precision: str) -> float:
        """Bytes of the KV cache per token: keys and values of all blocks."""
        return 2 * self.layers * (self.keys or self.hidden_size) * BYTES[precision]


def describe_model(
    config: RunConfig, vocabulary: int, parameters: float | None, *, local_only: bool = False
) -> ModelSize:
    """The size of the model that the run starts from. vocabulary: for a model that is made from scratch.

    local_only: ask no hub. Raises ConfigError for a hub id that is neither on this machine nor readable from the hub, unless
    `parameters` is given: then a Llama is assumed, with D = 128*L, I = 8/3*D and N = 12*L*D*D.
    """
    model, training, adapter = config.model, config.training, config.adapter
    if model.path is None:
        counted, block = count_parameters(model, vocabulary), _configured_block(model)
        activations, own = _block_bytes(block, training), _adapter(adapter, configured_layers(block, model.layers))
        return ModelSize(counted, model.hidden_size, model.layers, vocabulary, activations, "the configured shape", own)
    if parameters is None:
        return _read_model(model.path, training, adapter, local_only)
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    width = 128 * layers
    block = BlockShape("llama", width, 8 * width // 3, width // GUESSED_HEAD, width)
    origin = "--parameters; a Llama's shape is guessed from it"
    own = _adapter(adapter, configured_layers(block, layers))
    return ModelSize(round(parameters), width, layers, 50_000, _block_bytes(block, training), origin, own)


def count_parameters(model: ModelConfig, vocabulary: int) -> int:
    """Parameters N of a model made from scratch.

    Llama: V*D*(1 or 2) + L*(4*D*D + 3*D*I + 2*D) + D.
    GPT-2: V*D*(1 or 2) + context*D + L*(4*D*D + 2*D*I + 9*D + I) + 2*D, with biases and two norms per block.
    """
    d, i, layers = model.hidden_size, model.intermediate_size, model.layers
    embeddings = vocabulary * d * (1 if model.tie_embeddings else 2)
    if model.architecture == "llama":
        return embeddings + layers * (4 * d * d + 3 * d * i + 2 * d) + d
    return embeddings + model.context * d + layers * (4 * d * d + 2 * d * i + 9 * d + i) + 2 * d


def _configured_block(model: ModelConfig) -> BlockShape:
    d = model.hidden_size
    return BlockShape(model.architecture, d, model.intermediate_size, model.heads, d)


def _block_bytes(block: BlockShape, training: TrainingConfig) -> float:
    return block_bytes(block, training.precision, dropout=training.dropout == "model")


def _adapter(adapter: AdapterConfig | None, layers: LinearLayers) -> AdapterSize | None:
    return None if adapter is None else adapter_size(adapter, layers)


def _read_model(path: str, training: TrainingConfig, adapter: AdapterConfig | None, local_only: bool) -> ModelSize:
    """From a local, cached or hub model's configuration and the headers of its safetensors, without its weights."""
    unreachable = None if Path(path).is_dir() else "the hub was not asked" if local_only else _ask_hub(path)
    config = _read_config(path, unreachable)
    model = _build_without_weights(config)
    parameters, origin = _count_parameters(path, model, unreachable)
    try:
        activations = count_block_bytes(config, training.precision, dropout=training.dropout == "model")
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.path {path}: the activations of its architecture cannot be counted ({_first_line(error)}): give "
            "--parameters N"
        ) from None
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    shape = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    own = _adapter(adapter, model_layers(model))
    return ModelSize(parameters, *shape, activations, f"{origin} {path}", own, keys)


def _ask_hub(path: str) -> str | None:
    """Why this model on the hub cannot be read; None if it can. One request: others are tried again for half a minute."""
    import httpx2  # the HTTP library of huggingface_hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        HfApi().model_info(path, timeout=HUB_TIMEOUT_S)
    except (HFValidationError, OSError, httpx2.HTTPError) as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def _read_config(path: str, unreachable: str | None) -> Any:
    """Of a local folder, of the hub's cache, or from the hub if it is reachable."""
    from transformers import AutoConfig

    try:
        try:
            return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except OSError:
            if unreachable is not None or Path(path).is_dir():
                raise
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path {path}: its config can be read neither on this machine nor from the hub, so its size is unknown: "
            f"give --parameters N (e.g. 1.5e9). {unreachable or _first_line(error)}"
        ) from None


def _build_without_weights(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _count_parameters(path: str, model: Any, unreachable: str | None) -> tuple[int, str]:
    """Parameters as stored, or if there are no safetensors that can be read, as many as the configuration leads to."""
    stored = None if unreachable is not None else _read_headers(path)
    if stored is None:
        return model.num_parameters(), "the config of"
    prefix = f"{model.base_model_prefix}."
    stored = {name.removeprefix(prefix): count for name, count in stored.items()}
    names = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    if names <= stored.keys():  # some files also have buffers, e.g. GPT-2's causal mask
        stored = {name: stored[name] for name in names}
    return sum(stored.values()), "the safetensors of"


def _read_headers(path: str) -> dict[str, int] | None:
    """Numbers of each tensor in a model's safetensors, by name. None if it has none."""
    from huggingface_hub import HfApi, get_local_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        local = Path(path).is_dir()
        found = get_local_safetensors_metadata(path) if local else HfApi().get_safetensors_metadata(path)
    except NotASafetensorsRepoError:
        return None
    except (OSError, SafetensorsParsingError) as error:
        raise ConfigError(
            f"model.path {path}: the headers of its safetensors cannot be read: {_first_line(error)}"
        ) from None
    files = found.files_metadata.values()
    return {name: tensor.parameter_count for file in files for name, tensor in file.tensors.items()}
