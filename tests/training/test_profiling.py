import json

import torch

from cpo_ray.training.profiling import profiling


def train(folder, steps, rank=0):
    notices, a = [], torch.ones(64, 64)
    with profiling(folder, steps, rank, notices.append) as step_done:
        for _ in range(6):
            a = a @ a / 64
            step_done()
    return notices


def test_the_configured_number_of_steps_is_profiled(tmp_path):
    notices = train(tmp_path / "profiles" / "cpo", 2)
    assert notices == [f"profile of 2 steps: {tmp_path / 'profiles' / 'cpo' / 'trace.json'}"]
    trace = json.loads((tmp_path / "profiles" / "cpo" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert sum(name == "aten::matmul" for name in names) == 2
    assert "aten::mm" in (tmp_path / "profiles" / "cpo" / "operators.txt").read_text()


def test_other_workers_and_runs_without_a_profile_do_nothing(tmp_path):
    assert train(tmp_path / "x", 2, rank=1) == train(None, 0) == []
    assert not (tmp_path / "x").exists()
