"""A policy for a model that another stack holds: the classes are its own, the tensors go by known names.

Stacks such as ComfyUI load FLUX into modules of their own, write patches over the weights, and cast them on each
forward. They decide when a weight is written, so a guard of theirs needs what is written: `plan_tensors` checks policy,
masks and base weights against tensors by name, in the layout of diffusers or of Black Forest Labs, and the plan then
switches off its part of any tensor that it is handed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from safeflux.cached import cached_property
from safeflux.checkpoints.layout import Piece, layout_of, own_names, parameters
from safeflux.checkpoints.number_formats import Format
from safeflux.errors import ModelError
from safeflux.families.fingerprint import TOLERANCE, fingerprint_of
from safeflux.families.sites import find_sites
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.index_sets import Elements
from safeflux.model.receipt import fill_receipt
from safeflux.model.weights import check_plain, coarseness_of, take
from safeflux.model.writes import as_bits, masked, read_in_force
from safeflux.plan.resolve import Plan, plan_for
from safeflux.plan.status import State, Status, make_status
from safeflux.policy.load import Policy, load_policy


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A tensor of a GGUF file as loaders keep it in memory: its blocks as they are in the file.

    Attributes:
        data: The bytes of all blocks, uint8.
        kind: The name of the type, such as `Q8_0`.
        shape: The shape of the numbers.
    """

    data: torch.Tensor
    kind: str
    shape: tuple[int, ...]

    @cached_property
    def format(self) -> Format:
        """How the blocks are read.

        Raises:
            ModelError: The package `gguf` cannot read the type.
            ConfigError: The package is not installed.
        """
        from safeflux.checkpoints.gguf_file import format_named

        found = format_named(self.kind)
        if found is None:
            raise ModelError(
                f"the package gguf cannot read numbers of the type {self.kind!r}; update it, or bake the model "
                "before it is quantised"
            )
        return found

    def take(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return numbers by their row-major indices."""
        blocks = self.data.detach().reshape(-1, self.format.nbytes)
        read = torch.from_numpy
        return self.format.take(lambda of: blocks[read(of).to(blocks.device)].cpu().numpy().tobytes(), places)


Tensors = Mapping[str, torch.Tensor | PackedTensor]


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """A checked plan, and what it switches off in each tensor, by the names that the tensors were given under.

    Attributes:
        plan: The plan.
    """

    plan: Plan
    _places: tuple[tuple[str, str, Elements], ...]
    """Site, tensor, and what is masked of it there."""
    _ready: dict[tuple[str, torch.device], list[Elements]] = field(default_factory=dict)
    """The same by tensor, on the devices on which it was wanted."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors in which something is switched off."""
        return tuple(dict.fromkeys(name for _, name, _ in self._places))

    @torch.no_grad()
    def fill_(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Switch off in place what the plan masks of a tensor, and return it.

        Args:
            name: One of `names`.
            tensor: Any copy of that tensor: another dtype, on another device, with anything added to it. Its shape is
                that of the model's; quantised types with a scale for the whole tensor are written as they are.
        """
        bits = as_bits(tensor)
        for elements in self._on(name, tensor.device):
            elements.fill_(bits)
        return tensor

    def is_off(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether all that the plan masks of a tensor is zero in this copy of it (see `fill_`)."""
        bits = as_bits(tensor)
        return all(elements.are_zero(bits) for masked_by, of, elements in self._places if of == name)

    def status(
        self,
        read: Callable[[str], torch.Tensor],
        broken: Iterable[str] = (),
        unknown: Iterable[str] = (),
    ) -> Status:
        """Read every masked element, and return what is requested and what is in force.

        Args:
            read: Returns a tensor as the model's forward reads it, by its name; each is asked for once.
            broken: What else breaks the policy: the state is at least DEGRADED.
            unknown: What keeps this from being known: the state is at least STALE.
        """
        found: dict[str, list[torch.Tensor]] = {}
        faults = list(broken)
        for name in self.names:
            bits = as_bits(read(name))
            on = [elements.nonzero(bits) for _, of, elements in self._places if of == name]
            found[name] = on
            if count := sum(int(each.count_nonzero()) for each in on):
                faults.append(f"tensor {name!r}: {count} masked rows, columns or elements are not zero")
        in_force = read_in_force(self.plan.masks, self._places, lambda name, _: found[name].pop(0))
        unknown = list(unknown)
        state = State.DEGRADED if faults else State.STALE if unknown else State.GUARDED
        return make_status(self.plan, in_force, state, (*faults, *unknown))

    def receipt(
        self,
        status: Status,
        *,
        base: Mapping[str, Any],
        adapters: Mapping[str, Any],
        held: Mapping[str, int],
        versions: Mapping[str, str],
    ) -> dict[str, Any]:
        """Return the evidence of one moment as plain JSON values, as `GuardHandle.receipt` does.

        Args:
            status: What `status` returned.
            base: The class of the model, and the `dtypes` and `devices` of its weights.
            adapters: What else is on each layer, by its name.
            held: How many parameters are held in which way.
            versions: Of the stack, by its name.
        """
        return fill_receipt(self.plan, status, base=base, adapters=adapters, watched=(), held=held, versions=versions)

    def _on(self, name: str, device: torch.device) -> list[Elements]:
        key = name, device
        if key not in self._ready:
            self._ready[key] = [elements.to(device) for _, of, elements in self._places if of == name]
        return self._ready[key]


def plan_tensors(
    tensors: Tensors,
    policy: str | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    standing: Sequence[TensorPlan] = (),
) -> TensorPlan:
    """Resolve and check a policy for the tensors of a FLUX transformer. Reads some elements of each, writes nothing.

    Args:
        tensors: Every parameter of the transformer by its name, in the layout of diffusers or of Black Forest Labs,
            with or without the prefix of checkpoints; others than the transformer's are ignored where there is one.
            They are the base weights, with no adapter on them.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        standing: Plans that are already in force on the model and stay so: budgets count them all.

    Raises:
        ModelError: It is no FLUX transformer, or a tensor is offloaded, sharded or quantised in an unknown way.
        SafeFluxError: Planning refused it: as for `guard`, with other base weights than those of the masks first.

    Examples:
        >>> import safeflux
        >>> weights = safeflux.load_pipeline().transformer.state_dict()
        >>> found = safeflux.plan_tensors(weights, "strict")
        >>> name = found.names[0]
        >>> found.is_off(name, weights[name]), found.is_off(name, found.fill_(name, weights[name].clone()))
        (False, True)
    """
    full = own_names(tensors)
    own = {name: tensors[there] for name, there in full.items()}
    for name, tensor in own.items():
        if isinstance(tensor, torch.Tensor):
            check_plain(name, tensor)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    layout = layout_of(own)
    sites = find_sites(shapes, layout)
    base = fingerprint_of(_Named(own, parameters(shapes, layout, sites.family)))
    on_top_of = tuple(each.plan for each in standing)
    plan = plan_for(load_policy(policy), sites, base, open_store(store), standing=on_top_of)
    plan.check_enforces()
    places = ((site, full[name], elements) for site, name, elements in masked(sites, plan.masks, layout))
    return TensorPlan(plan, tuple(places))


@dataclass(frozen=True)
class _Named:
    """Tensors of any layout, as `fingerprint_of` asks for them."""

    tensors: Tensors
    pieces: Mapping[str, Piece]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `fingerprint.Weights`."""
        return {name: piece.shape for name, piece in self.pieces.items()}

    @property
    def coarsest(self) -> str:
        """See `fingerprint.Weights`."""
        found = (
            tensor.format.coarseness if isinstance(tensor, PackedTensor) else coarseness_of(tensor)
            for tensor in self.tensors.values()
        )
        return max(found, key=TOLERANCE.__getitem__, default="")

    def take(self, name: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See `fingerprint.Weights`. The scale of a whole tensor does not count, so it is not asked for."""
        piece = self.pieces[name]
        tensor, places = self.tensors[piece.tensor], piece.places(places)
        return tensor.take(places) if isinstance(tensor, PackedTensor) else take(tensor, places)
