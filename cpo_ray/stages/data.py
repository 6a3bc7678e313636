"""Stage `data`: read, split, cut and tokenize the examples."""

import platform
from functools import partial
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import WEIGHTS, Summary, hash_directories
from cpo_ray.config import DataConfig, RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.stages.record import Output, Stage, StageRun

EXAMPLES = Output("data", keys=("seed", "data"))
RULES = {"EOS of cut responses": "none"}
"""Rules that are no configuration keys, and were others in older versions: what was made by those is made again."""


def prepare_data(stage: StageRun) -> None:
    """Read the source; write the splits and the tokenizer."""
    from cpo_ray.checks.model_fit import check_model_fit
    from cpo_ray.data.chat_template import load_data_tokenizer
    from cpo_ray.data.examples import needs_ray, prepare_examples

    config = stage.config.data

    def build(out: Path) -> Summary:
        check_model_fit(stage.config, partial(load_data_tokenizer, config))
        if needs_ray(config):
            stage.ray.ensure()
        return prepare_examples(stage.config, out)

    version = {"python": platform.python_version()} if config.source == "python_docs" else {}
    files = {"files": fingerprints(config)}
    also = RULES | files | version | hash_directories(without=WEIGHTS, tokenizer=config.tokenizer.path)
    made = stage.make(EXAMPLES.name, build, also)
    if config.has_shares:
        check_validation_rows(stage.config, made.manifest.summary["validation_rows"])


def fingerprints(config: DataConfig) -> Any:
    """Fingerprints of the files of the only source, or of each of several sources; None for an embedded source."""
    from cpo_ray.data.sources import fingerprint, hub_part

    if config.sources:
        return [fingerprint(source.path, source.source, hub_part(source)) for source in config.sources]
    return fingerprint(config.files, config.source, hub_part(config)) if config.files else None


def check_validation_rows(config: RunConfig, rows: int) -> None:
    """Raise ConfigError if the loss is to be measured on more validation rows than a share of the data gives."""
    for section in ("reference", "training"):
        wanted = getattr(config, section).validation_rows
        if wanted > rows:
            raise ConfigError(
                f"{section}.validation_rows {wanted} exceeds the {rows} validation rows of the data "
                f"(data.validation_rows {config.data.validation_rows:g}): lower it, or raise data.validation_rows"
            )


DATA = Stage("data", "read, split and tokenize the examples", (EXAMPLES,), prepare_data)
