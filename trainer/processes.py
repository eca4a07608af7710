"""Several processes on one run, each with batches of its own, by Accelerate. A run by itself is the case of one.

The estimates of the processes are averaged, so that n processes with k batches each see what one process with
n * k batches sees. Every process then switches the same bits; the first one alone validates and writes.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

_T = TypeVar("_T")


class Processes:
    """The processes of a run; `accelerate launch` sets the environment that says which."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this one validates and writes."""
        return bool(self._state.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this one computes: a GPU of its own, or the CPU where there is none."""
        return torch.device(self._state.device)

    def batch(self, k: int) -> int:
        """The number of this process's k-th batch of a round, among all processes' batches."""
        return k * self.count + int(self._state.process_index)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same in each."""
        return tensor if self.count == 1 else reduce(tensor, "sum")

    def mean(self, values: Sequence[float]) -> float:
        """The mean over the values of all processes, of which each has as many."""
        return float(self.sum(torch.tensor(values).sum())) / (len(values) * self.count)

    def gather(self, values: list[_T]) -> list[_T]:
        """The values of all processes, in the order of their numbers."""
        return values if self.count == 1 else gather_object(values)

    def from_first(self, value: Any) -> Any:
        """The value of the first process, in each."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def leave(self) -> None:
        """End the exchange, in all processes at once: none of the above works afterwards.

        Gloo's threads may still hold tensors of the last exchange. A process that ends while they run may be aborted
        when they ask for Python (pytorch/pytorch#179291), and the launcher then kills the one that is still writing.
        """
        self._state.destroy_process_group()
