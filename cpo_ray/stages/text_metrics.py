"""Stage `text_metrics`: what the models' answers are like, without a judge, beside the same of the ground truth."""

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ray.artifacts import Summary, hash_directories, read_jsonl, write_json, write_rows
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.records import Generation
from cpo_ray.report.method import BASELINE
from cpo_ray.stages.evaluation import answer_files
from cpo_ray.stages.generation import GENERATIONS, evaluated_models
from cpo_ray.stages.likelihoods import check_heldout, score_likelihoods
from cpo_ray.stages.record import Output, Read, Stage, StageRun

if TYPE_CHECKING:
    from cpo_ray.evaluation.ngrams import Floats
    from cpo_ray.evaluation.text_metrics import AnswerSet, TextMeasurer


def has_baseline(config: RunConfig) -> bool:
    """Whether the model that the others are compared with is evaluated."""
    return BASELINE in evaluated_models(config)


def scores_reference(config: RunConfig) -> bool:
    """Whether the answers are scored under the reference."""
    return config.text_metrics.reference_likelihood


TEXT_SCORES = Output(
    "text_metrics/{model}",
    reads=(
        "data",
        "generations/{model}",
        Read(GENERATIONS.named(BASELINE), when=has_baseline),
        Read("models/reference", when=scores_reference),
    ),
    keys=("text_metrics", "seed", "data.max_response_tokens", "generation.split"),
    models=evaluated_models,
)
BRIEF = {"rep_4": "rep-4", "similarity": "similarity", "tokens": "tokens"}  # what is printed

File = tuple[str, str]  # model, decoding


def measure_texts(stage: StageRun) -> None:
    """Measure every model's answers, and compare them with the truth and with continued MLE."""
    config = stage.config.text_metrics
    also = hash_directories(embedder=config.embedder, heldout=config.heldout)
    models = evaluated_models(stage.config)
    stale = [name for name in models if not stage.is_current(TEXT_SCORES.named(name), also)]
    texts = _Texts(stage, stale)
    for name in models:
        stage.make(TEXT_SCORES.named(name), partial(_write_scores, texts, name), also)


def check_extras(config: RunConfig) -> None:
    """Raise ConfigError for a missing extra or model before the hours of work that precede this stage."""
    if config.text_metrics.grammar:
        from cpo_ray.evaluation.grammar import check_grammar_extra

        check_grammar_extra()
    if config.text_metrics.heldout is not None:
        check_heldout(config.text_metrics.heldout)


class _Texts:
    """The answers of the models that are measured, and of their baseline. Nothing is read before it is needed."""

    def __init__(self, stage: StageRun, models: list[str]) -> None:
        self.stage = stage
        self.models = list(dict.fromkeys([*models, *([BASELINE] if has_baseline(stage.config) else [])]))
        self.baselines: dict[str, AnswerSet] = {}  # by decoding

    @cached_property
    def files(self) -> dict[File, list[Generation]]:
        """Every file of answers. Raises ArtifactError if they are not all to the same prompts."""
        from cpo_ray.evaluation.text_metrics import check_prompts

        paths = {name: answer_files(self.stage.read(GENERATIONS.named(name))) for name in self.models}
        files = {(name, path.stem): read_jsonl(path) for name, found in paths.items() for path in found}
        ids = [row["id"] for row in next(iter(files.values()))]
        for (name, decoding), rows in files.items():
            check_prompts(rows, ids, _file_name(name, decoding))
        return files

    @cached_property
    def likelihoods(self) -> dict[File | None, dict[str, "Floats"]]:
        """Metric -> log-probs per token, of every file and of the truths (None): one pass for all."""
        config = self.stage.config.text_metrics
        if not config.reference_likelihood and config.heldout is None:
            return {file: {} for file in (None, *self.files)}
        scores = score_likelihoods(self.stage, list(self.files.values()))
        return dict(zip((None, *self.files), scores, strict=True))

    @cached_property
    def measurer(self) -> "TextMeasurer":
        """It has the truths, which all models and decodings share."""
        from cpo_ray.data.tokenization import encode, load_tokenizer
        from cpo_ray.evaluation.features import sentence_features
        from cpo_ray.evaluation.grammar import lint_rates
        from cpo_ray.evaluation.text_metrics import Instruments, TextMeasurer

        config = self.stage.config
        tokenizer = load_tokenizer(str(self.stage.read("data").path / "tokenizer"))
        embedder = config.text_metrics.embedder
        instruments = Instruments(
            encode=partial(encode, tokenizer, special=False),
            max_tokens=config.data.max_response_tokens,
            embed=None if embedder is None else sentence_features(embedder),
            lint=lint_rates if config.text_metrics.grammar else None,
        )
        return TextMeasurer(next(iter(self.files.values())), instruments, config.seed, self.likelihoods[None])

    def decodings(self, model: str) -> list[str]:
        """The decodings under which a model answered."""
        return [decoding for name, decoding in self.files if name == model]

    def measure(self, model: str, decoding: str) -> "AnswerSet":
        """The answers of one file. Raises ArtifactError if there is none."""
        if (model, decoding) not in self.files:
            raise ArtifactError(f"{GENERATIONS.named(model)} has no {decoding}: run the stage `generation` again")
        scored = self.likelihoods[model, decoding]
        return self.measurer.measure(self.files[model, decoding], _file_name(model, decoding), scored)

    def baseline(self, model: str, decoding: str) -> "AnswerSet | None":
        """What a model's answers are compared with; None for the baseline itself, and in a run without it."""
        if model == BASELINE or not has_baseline(self.stage.config):
            return None
        if decoding not in self.baselines:
            self.baselines[decoding] = self.measure(BASELINE, decoding)
        return self.baselines[decoding]


def _file_name(model: str, decoding: str) -> str:
    return f"{GENERATIONS.named(model)}/{decoding}.jsonl"


def _write_scores(texts: _Texts, model: str, out: Path) -> Summary:
    """Write scores.json, by decoding, and the values of each answer, a file per decoding."""
    decodings, scores, summary = texts.decodings(model), {}, Summary()
    measurer = texts.measurer
    with measured_bar(f"texts {model}", len(decodings), "files") as progress:
        for decoding in decodings:
            answers = texts.measure(model, decoding)
            scores[decoding] = measurer.compare(answers, texts.baseline(model, decoding), BASELINE)
            write_rows(out / f"{decoding}.jsonl", measurer.rows(answers))
            found = {short: scores[decoding]["metrics"].get(name) for name, short in BRIEF.items()}
            summary |= {f"{decoding} {short}": score["answers"]["value"] for short, score in found.items() if score}
            progress.advance(1, decoding)
    write_json(out / "scores.json", scores)
    return summary


TEXT_METRICS = Stage(
    "text_metrics",
    "measure repetition, diversity, length and more of the answers, beside the truth's",
    (TEXT_SCORES,),
    measure_texts,
    check_extras,
)
