"""How a plan is put in force on the engine's model patcher: twice, since neither way holds alone.

A *weight wrapper* is called by forward, last, on a copy of the weight. What LoRA nodes and hooks wrote into the weight
before does not matter, but the wrapper is no part of a model that is saved, and where the engine moves weights off the
device it calls what applies other patches after it. A *patch* is calculated into the weight, so it is saved too, and it
is lost when a later one is calculated after it; so it stays last among the patches of its weight. Both act on copies:
the loaded weights, which other workflows share, are never written.
"""

from collections.abc import Iterable
from typing import Any, SupportsIndex, overload

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase

from safeflux import ModelError, TensorPlan

PREFIX = "diffusion_model."
"""What the engine puts before the names of the transformer's tensors."""
_KEY = "safeflux"


class Zeros(WeightAdapterBase):
    """What a plan switches off in one tensor, as a weight wrapper and as a patch."""

    name = "safeflux"

    def __init__(self, plan: TensorPlan, tensor: str) -> None:
        self.plan, self.tensor = plan, tensor
        self.loaded_keys: set[str] = set()
        self.weights: list[torch.Tensor] = []

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """Switch it off in the copy that forward reads; a parameter itself is copied first, and never written."""
        return self.plan.fill_(self.tensor, weight.clone() if isinstance(weight, torch.nn.Parameter) else weight)

    def calculate_weight(self, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Switch it off in the copy that patches are calculated into."""
        return self(weight)


class ZerosLast(list[Any]):
    """The patches of one weight: those of guards stay behind all others, whoever appends one."""

    def append(self, patch: Any) -> None:
        """Add a patch before those of guards, or one of a guard at the end."""
        others = sum(not is_zeros(each) for each in self)
        self.insert(len(self) if is_zeros(patch) else others, patch)

    @overload
    def __getitem__(self, where: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, where: slice) -> "ZerosLast": ...
    def __getitem__(self, where: SupportsIndex | slice) -> Any:
        """Return a patch; or some, which keep their order too: the engine copies the list by a slice of it."""
        found = super().__getitem__(where)
        return ZerosLast(found) if isinstance(where, slice) else found


def is_zeros(patch: Iterable[Any]) -> bool:
    """Whether a patch of the engine is one of a guard."""
    return any(isinstance(part, Zeros) for part in patch)


def guards_of(model: ModelPatcher) -> tuple[TensorPlan, ...]:
    """Return the plans that are in force on a model, in the order in which they were put there."""
    return model.get_attachment(_KEY) or ()


def put_in_force(model: ModelPatcher, plan: TensorPlan) -> ModelPatcher:
    """Return a clone of a model on which a plan is in force, on top of those that are.

    Raises:
        ModelError: The engine does not know one of the weights as one that can be patched.
    """
    guarded = model.clone()
    zeros = {PREFIX + name: Zeros(plan, name) for name in plan.names}
    for key in zeros:
        guarded.patches[key] = ZerosLast(guarded.patches.get(key, ()))
    if missing := sorted(zeros.keys() - set(guarded.add_patches(zeros))):
        raise ModelError(f"weight {missing[0]!r}: the engine cannot patch it, so it cannot be guarded; bake the model")
    for key, each in zeros.items():
        guarded.add_weight_wrapper(key, each)
    guarded.set_attachments(_KEY, (*guards_of(model), plan))
    return guarded
