import json
import subprocess

import pytest
import yaml

from cpo_ray.errors import ConfigError, RunMismatchError
from cpo_ray.submission.sweeps.grid import load_sweep
from cpo_ray.submission.sweeps.preregistration import register, revision

PLAN = {"seeds": [1, 2], "tuning_seeds": [7], "arms": ["low", "high"], "alpha": 0.05}


class Study:
    """A sweep with a preregistration in a git checkout of its own."""

    def __init__(self, folder, write_sweep):
        self.folder, self.write_sweep, self.root = folder, write_sweep, folder / "runs"
        self.write()
        self.git("init", "-q")

    def git(self, *words):
        names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(["git", *names, *words], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, sweep=None, **plan):
        self.file = self.write_sweep(**({"preregistration": "plan.yaml"} | (sweep or {})))
        (self.folder / "plan.yaml").write_text(yaml.safe_dump(PLAN | plan))

    def commit(self):
        self.git("add", "plan.yaml", "sweep.yaml", "base.yaml")
        self.git("commit", "-q", "-m", "plan")
        return self.git("rev-parse", "HEAD")

    def register(self):
        return register(load_sweep(self.file), self.root)


@pytest.fixture
def study(tmp_path, write_sweep):
    return Study(tmp_path, write_sweep)


def test_the_registration_is_recorded_and_holds_on_resume(study):
    commit = study.commit()
    first = study.register()
    recorded = json.loads((study.root / "preregistration.json").read_text())
    assert (recorded["hash"], recorded["commit"]) == (first.hash, commit)
    assert recorded["content"]["preregistration"] == PLAN
    (study.folder / "code.py").write_text("")
    study.git("add", "code.py")
    study.git("commit", "-q", "-m", "code")
    assert study.register() == first
    register(load_sweep(study.file), study.folder / "elsewhere", dry_run=True)
    assert not (study.folder / "elsewhere").exists()
    found = revision(study.folder, first)
    assert found == {
        "commit": study.git("rev-parse", "HEAD"), "modified": False,
        "preregistration": first.hash, "preregistration_commit": commit,
    }  # fmt: skip
    (study.folder / "code.py").write_text("x = 1\n")
    assert revision(study.folder, None)["modified"] is True


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"alpha": 0.1}, "preregistration.alpha: 0.05 -> 0.1"),
        ({"sweep": {"settings": {"training.steps": 3}}}, "sweep.settings.training.steps: None -> 3"),
    ],
)
def test_another_registration_is_refused_with_what_differs(study, change, difference):
    study.commit()
    study.register()
    study.write(**change)
    study.commit()
    with pytest.raises(RunMismatchError, match="was started under another preregistration") as error:
        study.register()
    assert f"  {difference}\n" in str(error.value)


def test_comments_do_not_matter(study):
    study.commit()
    first = study.register()
    plan = study.folder / "plan.yaml"
    plan.write_text(f"# Why:\n{plan.read_text()}")
    study.commit()
    assert study.register().hash == first.hash


def test_what_is_not_committed_is_refused(study):
    with pytest.raises(ConfigError, match="in no git checkout with a commit"):
        study.register()
    study.git("add", "sweep.yaml", "base.yaml")
    study.git("commit", "-q", "-m", "without the plan")
    with pytest.raises(ConfigError, match=r"plan\.yaml is not committed"):
        study.register()
    study.commit()
    (study.folder / "base.yaml").write_text("name: base\nobjective: {beta: 2.0}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml was changed since its last commit"):
        study.register()
    assert not study.root.exists()


def test_a_rewritten_history_is_refused(study):
    study.commit()
    study.register()
    study.git("commit", "-q", "--amend", "-m", "the same content, another commit")
    with pytest.raises(RunMismatchError, match="which is no ancestor of HEAD"):
        study.register()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seeds": [2]}, "seed 2 is in seeds and in tuning_seeds"),
        ({"seeds": [1, 3]}, r"seeds \[1, 2\] are not those of"),
        ({"arms": ["low"]}, r"arm high is in .*sweep\.yaml and not in"),
        ({"arms": ["low", "high", "middle"]}, r"arm middle is in .*plan\.yaml and not in"),
        ({"tuning_seeds": None}, "`tuning_seeds` is missing"),
        ({"sweep": {"preregistration": "absent.yaml"}}, "there is no preregistration"),
    ],
)
def test_mistakes_are_refused(study, change, message):
    study.write(**change)
    study.commit()
    with pytest.raises(ConfigError, match=message):
        study.register()


def test_a_sweep_need_not_be_registered(make_sweep, tmp_path):
    assert register(make_sweep(), tmp_path) is None
