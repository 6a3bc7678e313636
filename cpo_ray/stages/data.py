"""Stage `data`: read, split, cut and tokenize the examples."""

import platform
from pathlib import Path

from cpo_ray.artifacts import WEIGHTS, Summary, hash_directories
from cpo_ray.stages.record import Output, Stage, StageRun

EXAMPLES = Output("data", keys=("seed", "data"))
RULES = {"EOS of cut responses": "none"}
"""Rules that are no configuration keys, and were others in older versions: what was made by those is made again."""


def prepare_data(stage: StageRun) -> None:
    """Read the source; write the splits and the tokenizer."""
    from cpo_ray.checks.model_fit import check_model_fit
    from cpo_ray.data.examples import needs_ray, prepare_examples
    from cpo_ray.data.sources import fingerprint
    from cpo_ray.data.tokenization import load_tokenizer

    config = stage.config.data

    def build(out: Path) -> Summary:
        check_model_fit(stage.config, load_tokenizer)
        if needs_ray(config):
            stage.ray.ensure()
        return prepare_examples(stage.config, out)

    files = fingerprint(config.files, config.source) if config.files else None
    version = {"python": platform.python_version()} if config.source == "python_docs" else {}
    also = RULES | {"files": files} | version | hash_directories(without=WEIGHTS, tokenizer=config.tokenizer.path)
    stage.make(EXAMPLES.name, build, also)


DATA = Stage("data", "read, split and tokenize the examples", (EXAMPLES,), prepare_data)
