"""What stands between an operation that a forward calls and the kernel that computes it: modes, and other kernels.

A mode of torch that is entered sees every operation, and can give it other tensors; so can a kernel that Python
registers for an operation of torch's own. Modes belong to a thread: seen are those of the one that asks.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch

from safeflux.model.watch.known import home_of, is_from_known, name_of

_KERNELS = re.compile(r"aten/.*/(CPU|CUDA|XPU|MPS|PrivateUse1|Autograd\w*|Composite\w*)")
"""Kernels that compute values; others only say of which shape these will be."""


def modes() -> list[Any]:
    """The modes that are entered now in this thread."""
    stacks = (
        (torch._C._len_torch_function_stack, torch._C._get_function_stack_at),
        (torch._C._len_torch_dispatch_stack, torch._C._get_dispatch_stack_at),
    )
    return [at(number) for count, at in stacks for number in range(count())]


def foreign_modes() -> Iterator[str]:
    """Name those that are not of known packages."""
    return (f"the mode {name_of(type(mode))}," for mode in modes() if not is_from_known(home_of(type(mode))))


def num_registered() -> int:
    """How many kernels Python has registered, of any operation."""
    return len(_registered())


def kernels() -> frozenset[str]:
    """Those of torch's own operations, each as `aten/linear/CPU`."""
    return frozenset(filter(_KERNELS.fullmatch, _registered()))


def _registered() -> set[str]:
    return getattr(torch.library, "_impls", set())
