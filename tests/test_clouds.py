"""The launcher files in clouds/: Ray's schema, no open dashboard, and every line to edit marked."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cpo_ray.checks.cluster_files import check_cluster_file, check_schema

ROOT = Path(__file__).parent.parent
CLOUDS = ROOT / "clouds"


@pytest.mark.parametrize("name", ["gcp", "azure"])
def test_a_launcher_file_is_what_rays_schema_allows(name, tmp_path):
    description = yaml.safe_load((CLOUDS / f"{name}.yaml").read_text())
    assert check_schema(name, description).status == "ok"
    checks = check_cluster_file(CLOUDS / f"{name}.yaml", tmp_path)
    assert [check.status for check in checks if check.name == "dashboard"] == ["ok"]
    marked = [check for check in checks if re.fullmatch(rf"{name}\.yaml:\d+", check.name)]
    assert len(marked) >= 5
    assert all(check.remedy != "put your own value here" for check in marked)
    assert description["provider"]["type"] == name
    for source in description["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()


def test_every_machine_of_a_launcher_file_gets_the_code_s_packages():
    subprocess.run(["bash", "-n", CLOUDS / "node.sh"], check=True)
    assert "requirements/gpu.lock" in (CLOUDS / "node.sh").read_text()


def test_the_skypilot_task_runs_a_shipped_configuration():
    task = yaml.safe_load((CLOUDS / "skypilot.yaml").read_text())
    assert (ROOT / "configs" / f"{task['envs']['CONFIG']}.yaml").is_file()
    assert "make install GPU=1" in task["setup"]
    assert '"$CONFIG"' in task["run"]
