"""A worker's memory: how much it took, and what to lower where there is not enough."""

import resource

import torch

from cpo_ray.training.task import Task

SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


def peak_memory_gib(device: torch.device) -> float:
    """The most that this worker has held so far: on the GPU, or of the machine's memory where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def out_of_memory(error: BaseException, task: Task) -> str | None:
    """What the user can lower, if this error says that memory ran out; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error).lower() for sign in SIGNS):
        return None
    config = task.training
    ways = [f"training.prompts_per_microbatch (now {config.prompts_per_microbatch})"]
    if task.objective is not None:
        ways.append("the number of candidates K (sampling.negatives)")
    ways.append("data.max_prompt_tokens and data.max_response_tokens")
    others = [] if config.activation_checkpointing else ["set training.activation_checkpointing"]
    others += [f"raise training.zero_stage (now {config.zero_stage})"] if config.zero_stage < 3 else []
    others += ["use bf16"] if config.precision == "fp32" else []
    first_line = str(error).strip().splitlines()[0][:200]
    return f"out of memory: {first_line}. Lower {', or '.join(ways)}" + (f"; or {', '.join(others)}" if others else "")
