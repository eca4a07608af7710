"""Masked neurons cut out of a loaded model for good, so that it is smaller and faster; there is no way back.

What can be removed is told by `removal`: the hidden neurons of feed-forwards. What cannot, modulation rows and single
weights, is filled with zeros as by `apply`. All is checked and every new parameter made before the first layer gets
one. If anything fails after that, each layer gets back what it had.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from safeflux.adapters import wrapped_layers
from safeflux.apply import apply_masks_
from safeflux.errors import ApplyError, ModelError, SafeFluxError
from safeflux.masks import MaskSet, check_fit
from safeflux.record import record_of
from safeflux.removal import REMOVABLE, ROUND_TO, WIDTHS, Index, Kept, axes, keeps, kept_by_site
from safeflux.sites import Site, find_sites
from safeflux.weights import check_not_compiled, check_writable, find_transformer, named_weights
from safeflux.writes import as_bits

_ORDER = "The order that works: load, compact, then adapters, quantisation, offload, compile."
_T = TypeVar("_T")


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
    """Cut every masked neuron out of the feed-forwards of a model, in place; fill all else that is masked with zeros.

    All or nothing: if anything fails, the model is bit for bit as before. Until it is done, what is cut needs memory
    beside what it is cut from. The names of the tensors stay, so do dtype, device and `requires_grad`; gradients are
    dropped. It cannot be undone, nor can the model be guarded after it, being another model; to compact by several
    mask sets, compose them first.

    `save_pretrained` writes the widths into the config, and `compactfile.load_compact` loads the folder.

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
    transformer = find_transformer(model)
    sites = find_sites(transformer)
    check_fit(masks, sites)
    _check_replaceable(transformer, sites, masks)
    kept = kept_by_site(sites, masks, round_to)
    widths = {name: Widths(sites[name].shape[0], len(neurons)) for name, neurons in kept.items()}
    try:
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as back:
            back.callback(apply_masks_(transformer, _not_removed(masks, kept)).restore_)
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


def put_(transformer: torch.nn.Module, name: str, parameter: torch.Tensor) -> None:
    """Give a layer another parameter, by its name in the transformer."""
    layer, _, own = name.rpartition(".")
    setattr(transformer.get_submodule(layer), own, parameter)


def set_width_(transformer: torch.nn.Module, site: Site, width: int) -> None:
    """Tell the layers of a feed-forward, and the block around it, how many neurons it has. Parameters stay."""
    for axis in axes(site):
        layer: Any = transformer.get_submodule(axis.tensor.rpartition(".")[0])
        setattr(layer, ("out_features", "in_features")[axis.number], axis.size(width))
        # What diffusers splits this axis by for tensor parallelism; the site's pieces are the last.
        blocks = vars(layer).get(("_tp_packed_col_blocks", "_tp_packed_row_blocks")[axis.number])
        if blocks is not None:
            blocks[-axis.pieces :] = [width] * axis.pieces
    block: Any = transformer.get_submodule(site.fqn)
    for module in block.modules():
        if "mlp_hidden_dim" in vars(module):  # FLUX.2's fused layers split their output by it
            module.mlp_hidden_dim = width


def _check_replaceable(transformer: torch.nn.Module, sites: Mapping[str, Site], masks: MaskSet) -> None:
    """Make sure that nothing else holds the parameters, or relies on their shapes."""
    for entry in record_of(transformer).entries:
        raise ApplyError(
            f"policy {entry.plan.policy.name!r} is in force on this model, and could be neither undone nor verified "
            "any more. Undo it, then compact by its masks."
        )
    for layer, wrapped in wrapped_layers(transformer).items():
        raise ModelError(
            f"layer {layer!r}: expected no adapters, got {', '.join(wrapped.adapters)}, whose layers would not fit any "
            f"more. Unload them. {_ORDER}"
        )
    for name, module in transformer.named_modules():
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
