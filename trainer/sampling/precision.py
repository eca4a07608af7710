"""In which float type matrix products run: bf16 where a device multiplies it faster than float32, else float32.

A processor without bf16 units emulates bf16, several times slower than float32. The data sheet
of a device is not enough (a library may ignore its units), so one small product of each type is timed.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["auto", "bfloat16", "float32"]
_SIZE = 256
_TRIALS = 5


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products.

    Args:
        precision: `auto` for the dtype that the device multiplies fastest.
        device: Where the model runs.
    """
    return _fastest(device.type) if precision == "auto" else getattr(torch, precision)


@cache
def _fastest(device_type: str) -> torch.dtype:
    """The faster of bf16 and float32, measured once a process."""
    return min((torch.bfloat16, torch.float32), key=lambda dtype: _seconds(device_type, dtype))


def _seconds(device_type: str, dtype: torch.dtype) -> float:
    """The least time of several small matrix products. Emulated bf16 takes dozens of times as long as with units."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device_type)
    times = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which waits for a device that runs on its own
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def fast_math(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in a dtype; on a CPU also plain attention, whose backward there is many times the faster one.

    The backward pass belongs inside too: otherwise its recomputation would run another attention.

    Args:
        device: Where the model runs.
        dtype: bf16 by autocast; float32 leaves the model's own dtype.
    """
    plain_attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    is_mixed = dtype != torch.float32
    with (
        torch.autocast(device.type, dtype, enabled=is_mixed),
        plain_attention,
        warnings.catch_warnings(),
    ):
        # The norms of q and k keep their float32 weights, as they should; torch says that this takes its slower kernel.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        # FSDP2 fears for views that a block returns, which no code of diffusers writes to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        yield
