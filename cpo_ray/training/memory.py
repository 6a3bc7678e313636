"""Memory of a worker: its peak, and advice on what to lower after an OOM."""

import resource

import torch

from cpo_ray.training.task import Task

OOM_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this worker so far: of the GPU, or of the process if it runs on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def oom_advice(error: BaseException, task: Task) -> str | None:
    """What the user can lower, if this error is an OOM; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error).lower() for text in OOM_MESSAGES):
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
