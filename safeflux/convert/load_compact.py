"""Loads a compacted transformer that `save_pretrained` wrote; diffusers cannot, because of its widths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file

from safeflux.checkpoints.checkpoint import Checkpoint, home_of
from safeflux.disk.canonical import read_json
from safeflux.errors import ModelError
from safeflux.families.sites import find_sites, parameter_shapes
from safeflux.masks.cuts import WIDTHS, compact_shapes, recorded_widths
from safeflux.model.weights import check_plain
from safeflux.model.writes import put_, set_width_


def load_compact(folder: str | os.PathLike[str], torch_dtype: torch.dtype | None = None) -> Any:
    """Load the transformer of a compacted model.

        pipe = FluxPipeline.from_pretrained(folder, transformer=load_compact(folder))

    The model is created without memory, then gets the tensors of the mapped files.

    Args:
        folder: A pipeline with its `transformer/`, or that folder itself; one safetensors file, or shards and an index.
        torch_dtype: The dtype to cast the weights to; None to keep that of the files.

    Returns:
        The transformer, of its own class in diffusers, in evaluation mode on the CPU.

    Raises:
        ModelError: The folder holds no compacted FLUX, or its files are damaged or do not fit the recorded widths.
    """
    home = home_of(Path(folder))
    config = read_json(home / "config.json")
    transformer = _empty(config, home)
    whole = parameter_shapes(transformer)
    weights = {name: weight for file in Checkpoint.open(home).files for name, weight in load_file(file.path).items()}
    _check_weights(home, weights, compact_shapes(config, whole))
    sites = find_sites(whole)
    widths = recorded_widths(config, sites)
    for name, width in widths.items():
        set_width_(transformer, sites[name], width)
    for name, weight in weights.items():
        put_(transformer, name, torch.nn.Parameter(weight.to(torch_dtype or weight.dtype)))
    transformer.register_to_config(**{WIDTHS: widths})
    return transformer.eval()


def _empty(config: Mapping[str, Any], home: Path) -> Any:
    """The whole model of a config, without memory for its weights."""
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise ModelError(f"{home / 'config.json'}: expected a transformer of diffusers, got _class_name {name!r}")
    own = {key: value for key, value in config.items() if key != WIDTHS}
    try:
        with init_empty_weights():
            return kind.from_config(own)
    except Exception as error:
        raise ModelError(f"{home / 'config.json'}: diffusers cannot create a {name} from it ({error})") from error


def _check_weights(home: Path, weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the files hold exactly the tensors of the model, as floats and in its shapes."""
    got = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(got.keys() | expected.keys()):
        if got.get(name) != expected.get(name):
            raise ModelError(
                f"{home}: tensor {name!r}: expected {expected.get(name, 'no such tensor')} from the config, got "
                f"{got.get(name, 'none')}; copy the model again"
            )
        check_plain(name, weights[name])
