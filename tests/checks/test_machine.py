from pathlib import Path

import pytest

from cpo_ray.checks import machine
from cpo_ray.checks.machine import GIB, Check


def status(check: Check) -> str:
    assert check.seen
    assert check.remedy or check.status == "ok", f"{check.name} has no remedy"
    return check.status


def test_python():
    assert status(machine.check_python((3, 11, 9))) == "ok"
    assert status(machine.check_python((3, 12, 0))) == "fail"


def test_packages_against_the_lock():
    lock = {"ray": "2.60.0", "numpy": "2.0"}
    assert status(machine.check_packages({"ray": "2.60.0", "numpy": "2.0", "more": "1"}, lock)) == "ok"
    wrong = machine.check_packages({"ray": "2.59.0"}, lock)
    assert status(wrong) == "fail"
    assert wrong.seen == "numpy missing (lock: 2.0), ray 2.59.0 (lock: 2.60.0)"
    assert status(machine.check_packages({}, None)) == "warn"


def test_many_wrong_packages_are_counted():
    wrong = machine.check_packages({}, {f"p{i}": "1" for i in range(8)})
    assert wrong.seen.endswith("and 3 more")


def test_a_lock_is_read_without_hashes_and_markers():
    text = "Ray_X==2.60.0 \\\n    --hash=sha256:abc\nwin==1 ; sys_platform == 'win32' \\\n    --hash=sha256:d\n# a==1\nb==2\n"
    assert machine.parse_lock(text) == {"ray-x": "2.60.0", "b": "2"}


@pytest.mark.parametrize("name", ["cpu.lock", "gpu.lock"])
def test_the_locks_are_complete_and_name_no_machine(name):
    text = (machine.REQUIREMENTS / name).read_text()
    pins = machine.parse_lock(text)
    assert pins["ray"] == "2.60.0"
    assert pins["setuptools"]
    assert ("torch" in pins) == (name == "gpu.lock")
    assert text.count("==") <= text.count("--hash=")
    for word in ("http:", "https:", "file:", "find-links", "index-url", "+cpu", " /"):
        assert word not in text


def test_torch():
    assert status(machine.check_torch("2.13.0+cpu", "2.13.0")) == "ok"
    assert status(machine.check_torch("2.12.0", "2.13.0")) == "fail"
    assert status(machine.check_torch(None, "2.13.0")) == "fail"


def test_gpus():
    assert status(machine.check_gpus([], "2.13.0+cpu")) == "ok"
    assert status(machine.check_gpus(["H100, 81559 MiB"], "2.13.0")) == "ok"
    idle = machine.check_gpus(["H100, 81559 MiB"], "2.13.0+cpu")
    assert (status(idle), idle.remedy) == ("warn", "make install GPU=1")


def test_efa_is_optional():
    assert machine.check_efa(["mlx5_0"]).status == "ok"
    assert machine.check_efa(["efa_0"]).seen == "efa_0"


def test_the_compiler():
    assert status(machine.check_compiler("/usr/bin/g++", "/usr/bin/ninja", True)) == "ok"
    missing = machine.check_compiler(None, None, False)
    assert status(missing) == "fail"
    assert "g++, ninja, python3.11-dev" in missing.seen


def test_a_tool():
    assert status(machine.check_tool("make", None, "install make", "warn")) == "warn"


def test_the_token(tmp_path):
    assert status(machine.check_token({"RAY_AUTH_MODE": "disabled"}, tmp_path)) == "warn"
    assert status(machine.check_token({"RAY_AUTH_TOKEN": "x"}, tmp_path)) == "ok"
    assert status(machine.check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "no")}, tmp_path)) == "fail"
    assert "Ray makes one" in machine.check_token({}, tmp_path).seen
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    open_to_all = machine.check_token({}, tmp_path)
    assert (status(open_to_all), open_to_all.remedy) == ("warn", f"chmod 600 {token}")
    token.chmod(0o600)
    assert machine.check_token({}, tmp_path) == Check("Ray token", "ok", str(token))


def test_the_token_itself_is_never_shown(tmp_path):
    assert "hidden" not in str(machine.check_token({"RAY_AUTH_TOKEN": "hidden"}, tmp_path))


@pytest.mark.parametrize(("free", "expected"), [(GIB, "fail"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_the_disk(free, expected):
    assert status(machine.check_disk(Path("runs"), free, True)) == expected
    assert status(machine.check_disk(Path("runs"), free, False)) == "fail"


@pytest.mark.parametrize(("size", "expected"), [(None, "warn"), (64 * 2**20, "warn"), (8 * GIB, "ok")])
def test_shared_memory(size, expected):
    assert status(machine.check_shared_memory(size)) == expected


@pytest.mark.parametrize(
    ("free", "expected"), [(None, "warn"), (4 * GIB, "fail"), (12 * GIB, "warn"), (32 * GIB, "ok")]
)
def test_memory(free, expected):
    assert status(machine.check_memory(free)) == expected


def test_the_browser_is_optional():
    assert machine.check_browser(None).status == "ok"


def test_every_check_runs_on_this_machine(tmp_path):
    checks = machine.check_machine(tmp_path / "not" / "there" / "yet")
    assert len({check.name for check in checks}) == len(checks) == 12
    assert next(check for check in checks if check.name == "Python").status == "ok"
