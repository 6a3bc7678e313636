"""Rounds of stage `cpo`: what each is made from, what is made again, and which policy is the result."""

import pytest

from cpo_ray.artifacts import find_artifact, read_jsonl
from cpo_ray.cluster.session import LazyRay
from cpo_ray.errors import ArtifactError, Preempted
from cpo_ray.report.fairness import compare_trainings
from cpo_ray.report.run_contents import read_run
from cpo_ray.sampling import groups
from cpo_ray.stages.rounds import SEEDS, Round
from cpo_ray.training import trainer
from tests.stages.rounds_run import FakeRounds, manifest, perform_stages

ROUNDS = ["cpo-1", "cpo-2", "cpo-3"]


@pytest.fixture
def rounds(monkeypatch):
    made = FakeRounds({})
    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    monkeypatch.setattr(groups, "make_groups", made.make_groups)
    monkeypatch.setattr(trainer, "train_model", made.train)
    return made


def test_every_round_starts_from_the_policy_before_and_samples_from_it(rounds, tmp_path):
    perform_stages(tmp_path)
    assert rounds.trained == [*ROUNDS, "mle"]
    first, second, third, mle = rounds.tasks
    assert [task.model.rsplit("/", 1)[1] for task in rounds.tasks] == ["reference", "cpo-1", "cpo-2", "reference"]
    assert [task.rows.name for task in (first, second, third)] == ["train", "train-2", "train-3"]
    assert {task.validation.name for task in (first, second, third)} == {"validation"}  # losses of one scale
    assert [task.first_batch for task in (first, second, third)] == [0, 10, 20]
    assert {task.seed for task in rounds.tasks} == {17}  # one order of the batches
    assert (mle.training.steps, mle.first_batch) == (30, 0)
    sampled = [(split, reference) for split, reference, _ in rounds.sampled]
    assert sampled == [("train", "reference"), ("validation", "reference"), ("train", "cpo-1"), ("train", "cpo-2")]
    seeds = [seed for split, _, seed in rounds.sampled if split == "train"]
    assert seeds == [17, Round(2).seed(17), Round(3).seed(17)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < SEEDS for seed in seeds)
    assert (tmp_path / "models" / "cpo" / "model.safetensors").read_text() == "cpo-3"


def test_the_manifests_record_the_reference_of_each_round(rounds, tmp_path):
    perform_stages(tmp_path)
    policy = find_artifact(tmp_path, "models/cpo-1")
    groups = manifest(tmp_path, "groups/train-2")["inputs"]
    assert groups["reads"]["models/cpo-1"] == policy.fingerprint
    assert groups["also"]["round"] == 2
    assert manifest(tmp_path, "models/cpo-2")["inputs"]["reads"]["models/cpo-1"] == policy.fingerprint
    assert manifest(tmp_path, "models/cpo-1")["inputs"]["also"] == {"round": 1}
    final = manifest(tmp_path, "models/cpo")
    assert {name for name in final["inputs"]["reads"] if name.startswith("models/")} == {
        "models/reference", "models/cpo-1", "models/cpo-2", "models/cpo-3",
    }  # fmt: skip
    assert (final["summary"]["kept"], final["summary"]["steps"]) == (3, 30)
    assert [each["round"] for each in final["summary"]["rounds"]] == [1, 2, 3]


def test_a_second_run_reuses_everything_and_one_more_round_costs_one_round(rounds, tmp_path, capsys):
    perform_stages(tmp_path)
    for again, made in ((3, []), (4, ["cpo-4", "mle"]), (2, ["mle"])):
        rounds.tasks.clear()
        rounds.sampled.clear()
        capsys.readouterr()
        perform_stages(tmp_path, rounds=again)
        assert rounds.trained == made
        assert [name for _, name, _ in rounds.sampled] == (["cpo-3"] if again == 4 else [])
    assert "reused models/cpo-2" in capsys.readouterr().out
    assert (tmp_path / "models" / "cpo" / "model.safetensors").read_text() == "cpo-2"
    assert "models/cpo-3" not in manifest(tmp_path, "models/cpo")["inputs"]["reads"]


def test_a_loss_changes_every_round_and_its_groups_but_not_those_of_the_reference(rounds, tmp_path):
    perform_stages(tmp_path)
    rounds.tasks.clear()
    rounds.sampled.clear()
    perform_stages(tmp_path, objective={"beta": 1.0})
    assert rounds.trained == ROUNDS  # the baseline depends on the number of rounds alone
    assert [name for _, name, _ in rounds.sampled] == ["cpo-1", "cpo-2"]


def test_a_run_that_was_stopped_in_a_round_goes_on_with_it(rounds, tmp_path, monkeypatch):
    train = trainer.train_model

    def stop(task, *arguments):
        arguments[-1].set()
        return train(task, *arguments)

    monkeypatch.setattr(trainer, "train_model", stop)
    with pytest.raises(Preempted, match="the training cpo-1 of stage `cpo` is finished; the same command goes on"):
        perform_stages(tmp_path)
    monkeypatch.setattr(trainer, "train_model", train)
    perform_stages(tmp_path, "cpo")
    assert rounds.trained == ROUNDS


def test_every_round_has_its_curve(rounds, tmp_path):
    perform_stages(tmp_path)
    assert [row["stage"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [*ROUNDS, "mle"]


def test_one_round_is_the_stage_as_it_is_without_rounds(rounds, tmp_path):
    perform_stages(tmp_path, rounds=1)
    assert rounds.trained == ["cpo", "mle"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["cpo", "mle", "reference"]
    assert sorted(path.name for path in (tmp_path / "groups").iterdir()) == ["train", "validation"]
    made = manifest(tmp_path, "models/cpo")["inputs"]
    assert made["config"].keys() == {"objective", "training", "seed"}
    assert "also" not in made
    assert manifest(tmp_path, "models/mle")["inputs"]["also"] == {"learning_rate": 1e-5}


def test_a_round_that_worsens_the_gold_is_discarded_and_later_ones_are_skipped(rounds, tmp_path, capsys):
    rounds.nll |= {"cpo-1": 4.1, "cpo-2": 4.3}
    for made in (["cpo-1", "cpo-2", "mle"], []):
        rounds.tasks.clear()
        perform_stages(tmp_path)
        assert rounds.trained == made
        printed = " ".join(capsys.readouterr().out.split())
        assert "warning round 2 raised the gold's negative log-likelihood on the validation split by 0.300" in printed
        assert "it is discarded, and the policy of round 1 is the result; skipped: round 3" in printed
    assert (tmp_path / "models" / "cpo" / "model.safetensors").read_text() == "cpo-1"
    summary = manifest(tmp_path, "models/cpo")["summary"]
    assert (summary["kept"], summary["steps"]) == (1, 10)
    assert [each["kept"] for each in summary["rounds"]] == [True, False]
    assert manifest(tmp_path, "models/mle")["inputs"]["also"]["steps"] == 10  # as many as the policy


def test_the_report_calls_the_trainings_alike(rounds, tmp_path):
    perform_stages(tmp_path)
    assert compare_trainings(read_run(tmp_path))["sentence"] == (
        "CPO and MLE were trained alike: on the same 0 prompts in the same order, for 30 steps of 64 prompts (CPO in 3 rounds, "
        "each with its own learning-rate schedule), and with one learning rate each, without tuning: 1e-05 for CPO, "
        "1e-05 for MLE."
    )
    rounds.nll |= {"cpo-1": 4.1, "cpo-2": 4.3}
    perform_stages(tmp_path, reference=2)
    sentence = compare_trainings(read_run(tmp_path))["sentence"]
    assert (
        "trained alike: on the same 0 prompts in the same order, for 10 steps of 64 prompts (CPO in 1 round" in sentence
    )
    assert "CPO's round 2 raised the gold's negative log-likelihood" in sentence


def test_another_limit_trains_no_round_again_and_an_unused_round_does_not_count(rounds, tmp_path):
    rounds.nll |= {"cpo-1": 4.1, "cpo-2": 4.3}
    perform_stages(tmp_path, rounds_stop={"max_nll_increase": 0.5})
    rounds.tasks.clear()
    perform_stages(tmp_path)  # cpo-3 is there from before, and not read
    assert rounds.trained == ["mle"]
    assert "models/cpo-3" not in manifest(tmp_path, "models/cpo")["inputs"]["reads"]
    assert (tmp_path / "models" / "cpo" / "model.safetensors").read_text() == "cpo-1"


def test_without_a_validation_split_all_rounds_are_taken(rounds, tmp_path):
    training = {"steps": 10}
    perform_stages(tmp_path, data={}, training=training, rounds_stop={"max_nll_increase": None})
    assert rounds.trained == [*ROUNDS, "mle"]
    assert {split for split, *_ in rounds.sampled} == {"train"}
    assert manifest(tmp_path, "models/cpo")["summary"]["rounds"][2]["nll"] is None


def test_groups_of_another_reference_are_refused_before_training(rounds, tmp_path):
    perform_stages(tmp_path, "sampling")
    with pytest.raises(ArtifactError) as caught:
        perform_stages(tmp_path, "cpo", reference=2)
    message = str(caught.value)
    for words in ("groups/train was sampled and scored under another models/reference", "the stage `sampling` again"):
        assert words in message
    assert find_artifact(tmp_path, "models/reference").fingerprint in message
    assert rounds.trained == []
    perform_stages(tmp_path, "sampling", "cpo", reference=2)
    assert rounds.trained == ROUNDS
