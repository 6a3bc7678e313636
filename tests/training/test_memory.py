import pytest
import torch

from cpo_ray.training.memory import oom_advice, peak_memory_gib
from tests.training.world import make_task

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
def test_the_advice_names_batch_k_and_length(tmp_path, error):
    advice = oom_advice(error, make_task(tmp_path, prompts_per_microbatch=4, zero_stage=2))
    assert advice.startswith("out of memory: ")
    assert "more" not in advice.splitlines()[0].split(". Lower")[0]
    assert (
        "Lower training.prompts_per_microbatch (now 4), or the number of candidates K (sampling.negatives), or "
        "data.max_prompt_tokens and data.max_response_tokens; or set training.activation_checkpointing, "
        "raise training.zero_stage (now 2), use bf16"
    ) in advice


def test_options_already_in_use_are_not_advised(tmp_path):
    task = make_task(tmp_path, objective=False, activation_checkpointing=True, zero_stage=3, precision="bf16")
    advice = oom_advice(CUDA, task)
    assert advice.endswith("data.max_prompt_tokens and data.max_response_tokens")
    assert "candidates" not in advice


def test_there_is_no_advice_for_other_errors(tmp_path):
    assert oom_advice(RuntimeError("shapes differ"), make_task(tmp_path)) is None


def test_the_peak_is_that_of_this_process():
    before = peak_memory_gib(torch.device("cpu"))
    torch.ones(2**28 // 4 + 2**26)  # 512 MiB, touched
    assert 0 < before <= peak_memory_gib(torch.device("cpu"))
