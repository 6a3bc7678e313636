from pathlib import Path

import pytest

from cpo_ray.config.loading import load_config, parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.submission.upload import check_no_secrets, job_command, known_secrets, upload_folder

TINY = Path(__file__).parents[1] / "tiny.yaml"
KEY = "judge-key-that-nobody-may-see"


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


def test_the_command_is_quoted():
    command = job_command(config(), "/mnt/my runs", first="cpo", last="mle", accept_changes=True)
    assert command == "python jobs/pipeline.py x.yaml --run-dir '/mnt/my runs' --from cpo --until mle --accept-changes"
    plain = job_command(config(), None, first=None, last=None, accept_changes=False)
    assert plain == "python jobs/pipeline.py x.yaml"


def test_the_upload_holds_code_and_the_resolved_configuration(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / ".env").write_text("KEY=1")
    run = load_config(TINY, ("training.steps=7",))
    with upload_folder(run, [package]) as folder:
        assert {path.name for path in folder.iterdir()} == {"cpo_ray", "jobs", "mine", "tiny.yaml", "REVISION"}
        assert load_config(folder / "tiny.yaml") == run
        names = {path.name for path in folder.rglob("*")}
        assert not {".env", "__pycache__", ".git"} & names
    assert not folder.exists()


def test_an_included_path_must_exist_and_have_a_free_name(tmp_path):
    (tmp_path / "jobs").mkdir()
    for include, reason in ((tmp_path / "jobs", "name is taken"), (tmp_path / "no", "no such path")):
        with pytest.raises(ConfigError, match=reason), upload_folder(config(), [include]):
            pass


def test_secrets_are_recognised_by_name_and_length():
    run = config(judge={"key_variable": "MY_JUDGE"})
    environment = {"MY_JUDGE": KEY, "HF_TOKEN": "hf-123456789", "DB_PASSWORD": "short", "PATH": "/usr/local/bin"}
    assert set(known_secrets(environment, run)) == {"MY_JUDGE", "HF_TOKEN"}
    every = {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "CLIENT_SECRET_2", "OPENAI_API_KEY"}
    every |= {"CPO_RAY_UNHELPFUL_KEY", "CPO_RAY_API_KEY"}
    assert set(known_secrets(dict.fromkeys(every, KEY), run)) == every


def test_a_secret_in_the_command_or_in_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="command holds the value of MY_JUDGE"):
        check_no_secrets(f"python x --key {KEY}", tmp_path, {"MY_JUDGE": KEY})
    (tmp_path / "notes.txt").write_text(f"remember {KEY}")
    with pytest.raises(ConfigError, match=r"notes.txt holds the value of MY_JUDGE") as refusal:
        check_no_secrets("python x", tmp_path, {"MY_JUDGE": KEY})
    assert KEY not in str(refusal.value)
