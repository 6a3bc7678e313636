"""Rounds of CPO without actors and workers: stage `sampling` and the trainings are replaced by small functions."""

import json
from dataclasses import dataclass, field
from typing import Any

from cpo_ray.artifacts import write_json
from cpo_ray.config import RunConfig
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform

ROWS, TOKENS = 8, 40  # of the validation split: 5 tokens per response


@dataclass
class FakeRounds:
    """What the stages asked for. nll: nat per token of the gold under the models `cpo-1`, `cpo-2`, ...; the reference has 4."""

    nll: dict[str, float]
    tasks: list[Any] = field(default_factory=list)
    sampled: list[tuple[str, str, int]] = field(default_factory=list)  # split, reference, seed

    @property
    def trained(self):
        return [task.stage for task in self.tasks]

    def logp(self, model):
        """Nats per response."""
        return -self.nll.get(model, 4.0) * TOKENS / ROWS

    def make_groups(self, config, data, reference, out, on_rows, *, split, phases):
        self.sampled.append((split, reference.name, config.seed))
        gold = {"count": ROWS, "tokens": TOKENS, "mean_ref_logp": self.logp(reference.name)}
        write_json(out / "stats.json", {"gold": gold})
        (out / "selected").mkdir(exist_ok=True)
        (out / "selected" / "rows").write_text(split)
        return {"rows": config.sampling.rows or 0}

    def train(self, task, cluster, checkpoints, out, on_metrics, on_notice, stop_requested):
        self.tasks.append(task)
        on_metrics({"stage": task.stage, "step": 1, "loss": 2.0})
        (out / "model.safetensors").write_text(task.stage)
        measured = {"validation_loss": 2.5, "validation_nll": self.nll.get(task.stage, 4.0)} if task.validation else {}
        return measured | {"steps": task.training.steps, "loss": 2.0, "accuracy": 0.5, "gold_drift": -0.25}


def config(**sections):
    return RunConfig.model_validate(
        {
            "name": "x",
            "rounds": 3,
            "data": {"validation_rows": ROWS},
            "training": {"steps": 10, "validation_rows": ROWS},
            "tracking": {"tensorboard": False},
        }
        | sections
    )


def perform_stages(root, *stages, reference=1, **sections):
    """Perform stages of a run whose data and reference are there. reference: another number, another model."""
    with open_run(config(**sections), root, accept_changes=True) as run:
        run.make("data", {}, lambda _: {})
        run.make("models/reference", {"number": reference}, lambda _: {})
        for stage in stages or ("sampling", "cpo", "mle"):
            perform(stage, run)


def manifest(root, name):
    return json.loads((root / name / "manifest.json").read_text())
