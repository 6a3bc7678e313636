"""Stage `text_metrics`: what the models' answers are like, without a judge, beside the same of the ground truth."""

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ray.artifacts import Summary, read_jsonl, write_json, write_rows
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.report.method import BASELINE
from cpo_ray.stages.evaluation import answer_files
from cpo_ray.stages.generation import GENERATIONS, evaluated_models
from cpo_ray.stages.record import Output, Read, Stage, StageRun

if TYPE_CHECKING:
    from cpo_ray.evaluation.text_metrics import AnswerSet, TextMeasurer


def has_baseline(config: RunConfig) -> bool:
    """Whether the model that the others are compared with is evaluated."""
    return BASELINE in evaluated_models(config)


TEXT_SCORES = Output(
    "text_metrics/{model}",
    reads=(
        Read("data", part="tokenizer"),
        "generations/{model}",
        Read(GENERATIONS.named(BASELINE), when=has_baseline),
    ),
    keys=("seed", "data.max_response_tokens"),
    models=evaluated_models,
)
BRIEF = {"rep_4": "rep-4", "tokens": "tokens"}  # what is printed


def measure_texts(stage: StageRun) -> None:
    """Measure every model's answers, and compare them with the truth and with continued MLE."""
    answers = _Answers(stage)
    for name in evaluated_models(stage.config):
        stage.make(TEXT_SCORES.named(name), partial(_measure, answers, name))


class _Answers:
    """The answers of a run's models, measured when they are needed; those of the baseline are needed by every other model."""

    def __init__(self, stage: StageRun) -> None:
        self.stage = stage
        self.baselines: dict[str, AnswerSet] = {}  # by decoding

    @cached_property
    def measurer(self) -> "TextMeasurer":
        """It has the truths, which all models and decodings share."""
        from cpo_ray.data.tokenization import encode, load_tokenizer
        from cpo_ray.evaluation.text_metrics import TextMeasurer

        config = self.stage.config
        tokenizer = load_tokenizer(str(self.stage.read("data").path / "tokenizer"))
        first = self.files(evaluated_models(config)[0])[0]
        return TextMeasurer(
            read_jsonl(first), partial(encode, tokenizer, special=False), config.data.max_response_tokens, config.seed
        )

    def files(self, model: str) -> list[Path]:
        """The answers of one model, a file per decoding."""
        return answer_files(self.stage.read(GENERATIONS.named(model)))

    def read(self, file: Path) -> "AnswerSet":
        """Measure a file of answers."""
        return self.measurer.answers(read_jsonl(file), str(file))

    def baseline(self, model: str, decoding: str) -> "AnswerSet | None":
        """What a model's answers are compared with; None for the baseline itself, and in a run without it."""
        if model == BASELINE or not has_baseline(self.stage.config):
            return None
        if decoding not in self.baselines:
            files = {file.stem: file for file in self.files(BASELINE)}
            if decoding not in files:
                raise ArtifactError(
                    f"{GENERATIONS.named(BASELINE)} has no {decoding}: run the stage `generation` again"
                )
            self.baselines[decoding] = self.read(files[decoding])
        return self.baselines[decoding]


def _measure(answers: _Answers, model: str, out: Path) -> Summary:
    """Write scores.json, by decoding, and the values of each answer, a file per decoding."""
    files, scores, summary = answers.files(model), {}, Summary()
    with measured_bar(f"texts {model}", len(files), "files") as progress:
        for file in files:
            measured = answers.read(file)
            scores[file.stem] = answers.measurer.compare(measured, answers.baseline(model, file.stem), BASELINE)
            write_rows(out / f"{file.stem}.jsonl", answers.measurer.rows(measured))
            metrics = scores[file.stem]["metrics"]
            summary |= {f"{file.stem} {short}": metrics[name]["answers"]["value"] for name, short in BRIEF.items()}
            progress.advance(1, file.stem)
    write_json(out / "scores.json", scores)
    return summary


TEXT_METRICS = Stage(
    "text_metrics",
    "measure repetition, diversity and length of the answers, beside the truth's",
    (TEXT_SCORES,),
    measure_texts,
)
