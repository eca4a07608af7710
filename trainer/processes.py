"""Several processes on one run, each with batches of its own, by Accelerate. A run by itself is the case of one.

The estimates of the processes are averaged, so that n processes with k batches each see what one process with
n * k batches sees. Every process then switches the same bits. All of them draw the pictures of a validation, and go by
what the first one finds there, which alone writes.

With `accelerate launch --use_fsdp --fsdp_version 2` each process holds its part of the frozen weights, and a block is
whole only while it runs, so that a forward takes all processes.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env, reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from safeflux.errors import ConfigError

_T = TypeVar("_T")
_FOLLOWED = {"--fsdp_version": "2", "--fsdp_reshard_after_forward": "true", "--fsdp_offload_params": "false"}
"""Options of the launcher with the values that training can follow."""


class Processes:
    """The processes of a run; `accelerate launch` sets the environment that says which."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.splits_weights = self.count > 1 and asks_for_fsdp()
        """Whether the weights are split among the processes."""

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._state.num_processes)

    @property
    def here(self) -> int:
        """How many of them share this machine's main memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def is_first(self) -> bool:
        """Whether this one writes, and its validation counts."""
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
        if self.count == 1:
            return tensor
        return reduce(tensor.to(self.device), "sum").to(tensor.device)  # NCCL takes no tensors of the main memory

    def mean(self, values: Sequence[float]) -> float:
        """The mean over the values of all processes, of which each has as many."""
        return float(self.sum(torch.tensor(values).sum())) / (len(values) * self.count)

    def gather(self, values: list[_T]) -> list[_T]:
        """The values of all processes, in the order of their numbers."""
        return values if self.count == 1 else gather_object(values)

    def from_first(self, value: Any) -> Any:
        """The value of the first process, in each."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def place_(self, pipe: Any) -> None:
        """Move a pipeline to the device; of a transformer that is split, this process's part of the weights."""
        self.split_(pipe.transformer)
        pipe.to(self.device)

    def split_(self, transformer: torch.nn.Module) -> None:
        """Where FSDP is asked for, keep this process's part of each frozen weight; a block is put together to run."""
        if self.splits_weights:
            mesh = init_device_mesh(self.device.type, (self.count,))
            for module in (*blocks_of(transformer), transformer):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def leave(self) -> None:
        """End the exchange, in all processes at once: none of the above works afterwards.

        Gloo's threads may still hold tensors of the last exchange. A process that ends while they run may be aborted
        when they ask for Python (pytorch/pytorch#179291), and the launcher then kills the one that is still writing.
        Of a model that was split, torch keeps the group until the process ends; by then its threads rest.
        """
        self._state.destroy_process_group()


def blocks_of(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks of a transformer, as they run."""
    return [block for stack in transformer.children() if isinstance(stack, torch.nn.ModuleList) for block in stack]


def is_split(transformer: torch.nn.Module) -> bool:
    """Whether the weights are split among processes."""
    return isinstance(transformer, FSDPModule)


def own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: all of it, unless it is split among processes."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def asks_for_fsdp() -> bool:
    """Whether the launcher was given `--use_fsdp`.

    Raises:
        ConfigError: Or an option of it that training cannot follow.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    for option, expected in _FOLLOWED.items():
        got = os.environ.get(option.removeprefix("--").upper(), expected).lower()
        if got != expected:
            raise ConfigError(f"accelerate launch --use_fsdp: expected {option} {expected}, got {got}")
    # On, transformers would load the text encoders in the first process alone, and leave the others' empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return True
