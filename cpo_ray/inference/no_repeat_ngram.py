"""A vLLM logits processor: no n-gram of tokens twice in prompt and answer, as `no_repeat_ngram_size` of transformers.

vLLM loads it by dotted name in engines whose requests may ask for it, and runs it for the requests that do. It is made for the
first model runner of vLLM 0.32: the second, which is the default on GPUs, has another interface.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from cpo_ray.inference.seen_ngrams import SeenNgrams

ARGUMENT = "no_repeat_ngram_size"  # in a request's `vllm_xargs`


class NoRepeatNgram(AdapterLogitsProcessor):
    """One SeenNgrams for each request with the argument."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError, which becomes status 400, for a size that is not a positive integer."""
        size = _size(sampling_params)
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"{ARGUMENT} must be a positive integer, not {size!r}")

    def is_argmax_invariant(self) -> bool:
        """No: it also changes greedy answers."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """For a request with the argument, a function of the prompt, the answer so far and its logits, (V,); else None."""
        size = _size(params)
        if size is None:
            return None
        seen = SeenNgrams(size)

        def ban(prompt: list[int], answer: list[int], logits_V: torch.Tensor) -> torch.Tensor:
            banned = sorted(seen.banned([*prompt, *answer]))
            if banned:
                logits_V[torch.tensor(banned, device=logits_V.device)] = -torch.inf
            return logits_V

        return ban


def _size(params: Any) -> Any:
    return (params.extra_args or {}).get(ARGUMENT)
