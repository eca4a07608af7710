"""How to train fast on this processor: in which dtype, and with how many threads beside what else runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

WARM_UPS, TRIALS = 1, 3


def faster_dtype(loss: Callable[[], torch.Tensor]) -> tuple[torch.dtype, dict[str, float]]:
    """Time forward and backward passes under autocast to bf16, fast where there are units for it, and in float32.

    In seconds of one thread on its core, which other processes on the machine do not lengthen by much.

    Args:
        loss: Computes a scalar to differentiate; the gradients that it leaves are the caller's to drop.

    Returns:
        The faster one, and the seconds of the fastest pass in each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {dtype: _seconds(loss, dtype) for dtype in (torch.bfloat16, torch.float32)}
    torch.set_num_threads(threads)
    return min(seconds, key=lambda dtype: seconds[dtype]), {str(d): round(s, 3) for d, s in seconds.items()}


def _seconds(loss: Callable[[], torch.Tensor], dtype: torch.dtype) -> float:
    times = []
    for _ in range(WARM_UPS + TRIALS):
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        times.append(time.process_time() - began)
    return min(times[WARM_UPS:])


class FreeCores:
    """Keeps torch at as many threads as there are cores free of other processes.

    All threads wait for the slowest: one that must share its core with another process made a step ten times as long.
    A core where only a process of low priority (`nice`) runs counts as free, since that one gives way.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds, self._cores = seconds, psutil.cpu_count() or 1
        self._seen = self._times()

    def use(self) -> None:
        """Look again if it is time to, and set the number of threads."""
        now, free, own = self._times()
        then, free_then, own_then = self._seen
        if now - then >= self._seconds:
            self._seen = now, free, own
            usable = (free - free_then + own - own_then) / (now - then)
            torch.set_num_threads(min(max(round(usable), 1), self._cores))

    @staticmethod
    def _times() -> tuple[float, float, float]:
        """Seconds by the clock, free seconds of all cores together, and seconds of this process on them."""
        process, cores = psutil.Process(), psutil.cpu_times()
        own = process.cpu_times()
        low = 0.0 if process.nice() > 0 else getattr(cores, "nice", 0.0)  # Windows does not tell
        return time.monotonic(), cores.idle + low, own.user + own.system
