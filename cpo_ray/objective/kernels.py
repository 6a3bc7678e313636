"""FlexAttention, compiled: one copy for each use, so that the shapes of one use never crowd out another's.

torch compiles a function again for shapes and modes that it has not seen, and gives up after a number of times; it would go on
uncompiled, with every score in memory. A use fixes all but the number and the length of rows: whether gradients are wanted
(training, validation, scoring), the mask's rule (whole tree, window), cap, sinks, heads and dtype. What remains takes at most
KERNELS_PER_USE kernels, however many shapes come.
"""

import types
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

KERNELS_PER_USE = 6  # for one row and for several, each for its first shapes and then for every length
LIMIT = 16  # at which a use fails instead of going on uncompiled: what torch would need is measured, not promised


def kernel_for(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, cap: float | None, sinks: bool
) -> Callable[..., Any]:
    """The compiled copy for this use of FlexAttention."""
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), query.requires_grad)
    shape = (query.shape[1], query.shape[3], key.shape[1], value.shape[3], query.dtype, query.device)
    return compiled_copy((*modes, mask.mask_mod.__name__, cap, sinks, *shape))


@cache
def compiled_copy(use: Hashable, backend: Any = "inductor") -> Callable[..., Any]:
    """A copy of FlexAttention that is compiled for this use alone."""
    return compile_kernel(backend, f"flex_attention_{abs(hash(use))}")


def compile_kernel(backend: Any, name: str = "flex_attention", limit: int = LIMIT) -> Callable[..., Any]:
    """FlexAttention, compiled for a shape and then, once another one comes, for every number and length of rows."""

    def attend(*tensors: Tensor, **options: Any) -> Any:
        return flex_attention(*tensors, **options)  # type: ignore[call-overload]

    # torch counts compilations by code object, and what it knows of sizes by the code's name.
    code = attend.__code__.replace(co_name=name, co_qualname=name)
    compiled: Any = torch.compile(types.FunctionType(code, globals(), name), backend=backend)

    def kernel(*tensors: Tensor, **options: object) -> Any:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):  # noqa: SLF001
            return compiled(*tensors, **options)

    return kernel
