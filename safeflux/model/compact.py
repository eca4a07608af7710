"""Removes masked neurons from a loaded model for good, so that it is smaller and faster. It cannot be undone.

What can be removed is in `masks.cuts`: the hidden neurons of feed-forwards. What cannot, modulation rows and single
weights, is filled with zeros as by `apply`. All is checked and every new parameter made before the first layer gets
one. If anything fails after that, each layer gets back what it had.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from safeflux.errors import ApplyError, ModelError, SafeFluxError
from safeflux.families.sites import Site, spans
from safeflux.masks.cuts import REMOVABLE, ROUND_TO, WIDTHS, Index, Kept, axes, keeps, kept_by_site
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.masks.packed import Keep
from safeflux.model.adapters import wrapped_layers
from safeflux.model.apply import Fault, Undo, apply_masks_
from safeflux.model.commit import Commit
from safeflux.model.forward_values import Values
from safeflux.model.index_sets import Elements
from safeflux.model.record import GONE, record_of
from safeflux.model.watch.parts import named_parts
from safeflux.model.weights import (
    check_not_compiled,
    check_writable,
    find_transformer,
    named_weights,
    sites_of,
)
from safeflux.model.writes import as_bits, put_, set_width_

_ORDER = "The order that works: load, compact, then adapters, quantisation, offload, compile."
_T = TypeVar("_T")
Places = tuple[Index, ...]
"""What indexes a mask by neurons, or by rows and columns."""


class Widths(NamedTuple):
    """How many neurons a site had, and has."""

    before: int
    after: int


@dataclass(frozen=True)
class Compacted:
    """What compacting did."""

    widths: Mapping[str, Widths]
    """Of each feed-forward that lost neurons, by site name."""
    num_parameters_removed: int
    num_bytes_removed: int


def compact_(model: Any, masks: MaskSet, *, round_to: int = ROUND_TO) -> Compacted:
    """Remove every masked neuron from the feed-forwards of a model, in place; fill all else that is masked with zeros.

    All or nothing: if anything fails, the model is bit for bit as before. Until it is done, what is cut needs memory
    beside what it is cut from. The names of the tensors stay, so do dtype, device and `requires_grad`; gradients are
    dropped. It cannot be undone, nor can the model be guarded after it, being another model; to compact by several
    mask sets, compose them first.

    `save_pretrained` writes the widths into the config, and `safeflux.load_compact` loads the folder.

    Args:
        model: A FLUX pipeline of diffusers, or its transformer.
        masks: True = keep. Every site must be one of the transformer's, in its shape.
        round_to: Each width is the next multiple of this, for speed; what stays for that is zero. 1 cuts out all.

    Returns:
        What was removed.

    Raises:
        ModelError: Not a FLUX, or its weights cannot be replaced: adapters, quantised, offloaded, sharded, compiled.
        MaskMismatchError: A site that the model does not have, or another shape.
        ApplyError: A guard is in force on the model, or something failed. The model is as before.
    """
    return _cut_out_(find_transformer(model), masks, round_to, lambda: None)


def _cut_out_(transformer: torch.nn.Module, masks: MaskSet, round_to: int, finish: Callable[[], object]) -> Compacted:
    """Do what `compact_` says, and `finish` as the last step, after which a record on the model makes it count."""
    sites = sites_of(transformer)
    check_fit(masks, sites)
    _check_replaceable(transformer, sites, masks)
    kept = kept_by_site(sites, masks, round_to)
    widths = {name: Widths(sites[name].shape[0], len(neurons)) for name, neurons in kept.items()}
    try:
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as back:
            zeros: dict[str, Undo] = {}
            back.callback(lambda: zeros["written"].restore_() if zeros else None)
            apply_masks_(transformer, _not_removed(masks, kept), lambda undo: Commit(zeros, "written", lambda: undo))
            old = named_weights(transformer)
            new = {name: _cut(old[name], stays) for name, stays in keeps(sites, masks, round_to=round_to).items()}
            gone = [(old[name].numel() - cut.numel(), cut.element_size()) for name, cut in new.items()]
            done = Compacted(widths, sum(count for count, _ in gone), sum(count * size for count, size in gone))
            for name, parameter in new.items():
                _change_(back, partial(put_, transformer, name), old[name], parameter)
            for name, width in widths.items():
                _change_(back, partial(set_width_, transformer, sites[name]), *width)
            back.callback(setattr, transformer, "_internal_dict", transformer.config)
            _record_(transformer, widths)
            back.callback(lambda: back.pop_all() if record_of(transformer).entries else None)
            finish()
            back.pop_all()
    except SafeFluxError:
        raise
    except Exception as error:
        raise ApplyError(f"removing neurons failed ({error}); every weight is as it was before") from error
    return done


def _change_(back: ExitStack, set_: Callable[[_T], None], before: _T, after: _T) -> None:
    """Set something, and have it set back if anything fails later."""
    back.callback(set_, before)
    set_(after)


def _check_replaceable(transformer: torch.nn.Module, sites: Mapping[str, Site], masks: MaskSet) -> None:
    """Make sure that nothing else holds the parameters, or relies on their shapes."""
    for entry in record_of(transformer).entries:
        raise ApplyError(
            f"policy {entry.plan.policy.name!r} is in force on this model, and could be neither undone nor verified "
            "any more. Undo it, then compact by its masks."
        )
    for layer, wrapped in wrapped_layers(named_parts(transformer)).items():
        raise ModelError(
            f"layer {layer!r}: expected no adapters, got {', '.join(wrapped.adapters)}, whose layers would not fit any "
            f"more. Unload them. {_ORDER}"
        )
    for name, module in named_parts(transformer).items():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if hasattr(module, "_hf_hook") or "group_offloading" in hooks:
            raise ModelError(
                f"module {name or type(module).__name__!r}: expected weights at rest, got a hook that offloads them "
                f"and would bring the old ones back. {_ORDER}"
            )
    check_not_compiled(transformer)
    check_writable(transformer, (sites[name] for name in masks))
    _check_layers(transformer, sites.values())


def _check_layers(transformer: torch.nn.Module, sites: Iterable[Site]) -> None:
    """Make sure that feed-forwards are made of plain linear layers of their own."""
    seen: dict[int, str] = {}
    for name in (axis.tensor for site in sites if site.kind in REMOVABLE for axis in axes(site)):
        layer = transformer.get_submodule(name.rpartition(".")[0])
        if type(layer) is not torch.nn.Linear:
            raise ModelError(
                f"tensor {name!r}: expected it in a torch.nn.Linear, got {type(layer).__name__}, which may know its "
                f"width by other means. {_ORDER}"
            )
        first = seen.setdefault(id(transformer.get_parameter(name)), name)
        if first != name:
            raise ModelError(
                f"tensors {first!r} and {name!r} are one and the same: what one feed-forward loses, the other would "
                "lose too. Give each its own (`copy.deepcopy`)."
            )


def _not_removed(masks: MaskSet, kept: Mapping[str, Index]) -> MaskSet:
    """The masks of all that stays and has to be zero."""
    found: dict[str, Any] = dict(masks.bits)
    for name, neurons in kept.items():
        keep = np.ones_like(masks[name])
        keep[neurons] = masks[name][neurons]
        found[name] = keep
    return MaskSet(found)


def _record_(transformer: Any, widths: Mapping[str, Widths]) -> None:
    """Write the widths into the config, beside those that are there already."""
    record = dict(transformer.config.get(WIDTHS, {}))
    transformer.register_to_config(**{WIDTHS: record | {name: width.after for name, width in widths.items()}})


def _cut(weight: torch.Tensor, kept: Kept) -> torch.nn.Parameter:
    """A new parameter with these rows or columns of another."""
    bits = as_bits(weight)  # picks float8 too
    for axis, index in enumerate(kept):
        if index is not None:
            bits = bits.index_select(axis, torch.from_numpy(index).to(bits.device))
    return torch.nn.Parameter(bits.view(weight.dtype), requires_grad=weight.requires_grad)


class Removed(Undo):
    """What knows where a compacted model was masked. Made by `remove_masked_`."""

    def __init__(self, rest: Undo, transformer: torch.nn.Module, masks: MaskSet, left: Mapping[str, Places]) -> None:
        """Hold what is masked on the transformer, and which places of cut masks it still has."""
        super().__init__(transformer, masks, ())
        self._rest = rest
        self._left = left

    @property
    def is_final(self) -> bool:
        """Always: neurons are gone."""
        return True

    @property
    def is_done(self) -> bool:
        """Never: it cannot be undone."""
        return False

    def in_force(self) -> MaskSet:
        """Read the model, and return which of the masked bits are off: gone, or zero in every tensor of theirs."""
        now, uncut = self._rest.in_force(), self._uncut()
        found: dict[str, Keep] = {}
        for name, mask in self._masks.items():
            if name in uncut:
                mask[:] = True
            elif name in now:
                mask[self._left.get(name, ...)] = now[name]
            found[name] = mask
        return MaskSet(found)

    def places(self) -> Iterator[tuple[str, Elements, int]]:
        """Yield what is masked and still there."""
        return self._rest.places()

    def faults(self, now: Values | None = None) -> list[Fault]:
        """Return what is not as it was written, and what has another size than it was cut to."""
        return self._rest.faults(now) + [
            Fault(name, f"was cut to {wanted} and has {got}", is_open=True)
            for name, (wanted, got) in self._uncut().items()
        ]

    def restore_(self, commit: Commit | None = None) -> None:
        """Refuse.

        Raises:
            ApplyError: Always.
        """
        raise ApplyError(f"cannot undo: {GONE}")

    def refresh_(self) -> None:
        """Switch off again what is there and masked, as `Undo.refresh_` does."""
        self._rest.refresh_()

    def _uncut(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
        """Sites that are not as large as they were cut to: what they should be, and what they are."""
        sites = sites_of(self._transformer)
        shapes = {name: sites[name].shape if name in sites else None for name in self._left}
        wanted = {name: tuple(part.size for part in places) for name, places in self._left.items()}
        return {name: (wanted[name], shape) for name, shape in shapes.items() if shape != wanted[name]}


def remove_masked_(transformer: torch.nn.Module, masks: MaskSet, commit: Callable[[Undo], Commit]) -> None:
    """Cut masked neurons out of a transformer (`compact_`), and commit what knows where they were.

    Raises:
        SafeFluxError: The errors of `compact_`; the model is as before.
    """
    sites = sites_of(transformer)
    check_fit(masks, sites)
    left = _left(sites, masks)
    rest = MaskSet({name: mask[left[name]] if name in left else mask for name, mask in masks.items()})

    def finish() -> None:
        apply_masks_(transformer, rest, lambda undo: commit(Removed(undo, transformer, masks, left)))

    _cut_out_(transformer, masks, ROUND_TO, finish)


def _left(sites: Mapping[str, Site], masks: MaskSet) -> dict[str, Places]:
    """What is left of the masks of sites that are cut: of neurons, and of matrices whose rows or columns they are."""
    cut, neurons = keeps(sites, masks), kept_by_site(sites, masks)
    left: dict[str, Places] = {name: (kept,) for name, kept in neurons.items()}
    for name in masks:
        kept = cut.get(spans(sites[name])[0].tensor)
        if len(sites[name].shape) == 2 and kept is not None:
            whole = (np.arange(size) for size in sites[name].shape)
            left[name] = np.ix_(*(every if some is None else some for some, every in zip(kept, whole, strict=True)))
    return left
