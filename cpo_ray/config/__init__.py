"""The configuration of a run: one YAML file, one frozen pydantic model per section.

The string under each key documents it; `docs/configuration.md` is generated from these strings. Unknown keys and values
out of bounds are errors that name the key; nothing is rounded or guessed.
"""

from cpo_ray.config.adapter import AdapterConfig
from cpo_ray.config.cluster import ClusterConfig
from cpo_ray.config.data import ROW_SOURCES, ChatConfig, DataConfig, PassagesConfig, TokenizerConfig
from cpo_ray.config.evaluation import (
    DecodingConfig,
    GenerationConfig,
    JudgeConfig,
    MauveConfig,
    RewardConfig,
    TextMetricsConfig,
)
from cpo_ray.config.inference import EngineConfig
from cpo_ray.config.negatives import NegativeCounts, UnhelpfulConfig
from cpo_ray.config.objective import ObjectiveConfig
from cpo_ray.config.rounds import RoundsStopConfig
from cpo_ray.config.run import RunConfig
from cpo_ray.config.sampled_kinds import KindDecoding, SampledKind
from cpo_ray.config.sampling import PoolConfig, SamplingConfig
from cpo_ray.config.section import EXECUTION, Section, stage_inputs
from cpo_ray.config.serving import LimitsConfig, MergingConfig, ServingConfig
from cpo_ray.config.sources import FieldsConfig, SourceConfig
from cpo_ray.config.training import (
    MleConfig,
    ModelConfig,
    ScheduledSamplingConfig,
    TrackingConfig,
    TrainingConfig,
    TuningConfig,
)

__all__ = [
    "EXECUTION",
    "ROW_SOURCES",
    "AdapterConfig",
    "ChatConfig",
    "ClusterConfig",
    "DataConfig",
    "DecodingConfig",
    "EngineConfig",
    "FieldsConfig",
    "GenerationConfig",
    "JudgeConfig",
    "KindDecoding",
    "LimitsConfig",
    "MauveConfig",
    "MergingConfig",
    "MleConfig",
    "ModelConfig",
    "NegativeCounts",
    "ObjectiveConfig",
    "PassagesConfig",
    "PoolConfig",
    "RewardConfig",
    "RoundsStopConfig",
    "RunConfig",
    "SampledKind",
    "SamplingConfig",
    "ScheduledSamplingConfig",
    "Section",
    "ServingConfig",
    "SourceConfig",
    "TextMetricsConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TuningConfig",
    "UnhelpfulConfig",
    "stage_inputs",
]
