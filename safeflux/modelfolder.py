"""A model on disk, looked at without loading it: its weights as views of the mapped files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from safeflux.errors import ModelError

_NAME = "diffusion_pytorch_model.safetensors"


def map_weights(folder: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Map the weights of a FLUX folder of diffusers into memory; what is not read stays on the disk.

    Args:
        folder: A pipeline with its `transformer/`, or that folder itself; one safetensors file, or shards and an index.

    Returns:
        Name to tensor. Writing to one is private to this process and never changes the file.

    Raises:
        ModelError: The folder holds no such files, or one of them is missing or damaged.
    """
    root = Path(folder)
    home = root / "transformer" if (root / "transformer").is_dir() else root
    weights: dict[str, torch.Tensor] = {}
    for path, expected in _files(home).items():
        try:
            found = load_file(path)  # maps the file
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors ({error}); copy the model again") from error
        if expected is not None and expected != found.keys():
            strange = sorted(expected ^ found.keys())[0]
            raise ModelError(f"{path}: its tensors are not those of the index, {strange!r} for one")
        weights |= found
    return weights


def _files(home: Path) -> Mapping[Path, set[str] | None]:
    """The files of a transformer, and which tensors each must hold where an index says so."""
    index = home / f"{_NAME}.index.json"
    if not index.is_file():
        if (home / _NAME).is_file():
            return {home / _NAME: None}
        raise ModelError(f"{home}: expected {_NAME} or {index.name}, as diffusers saves a FLUX transformer; found none")
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str]] = {home / name: set() for name in places.values()}
        for tensor, name in places.items():
            files[home / name].add(tensor)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: cannot be read as an index of shards ({error!r})") from error
    if outside := [path for path in files if path.parent != home]:
        raise ModelError(f"{index}: {outside[0].name} lies outside of the folder")
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise ModelError(f"{index}: names {missing[0]}, which is missing; copy the model again")
    return files
