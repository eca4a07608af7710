"""The other files in a model's folder, and which of them are copied along with the guarded weights.

Other weights are left out: the whole model in one file next to the folders, another precision, another index of shards.
They would be unguarded, and a loader could pick them. In a folder that is already guarded, they are faults.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safeflux.baking.components import FLUX_CLASS, components, unguarded
from safeflux.checkpoints.checkpoint import home_of
from safeflux.checkpoints.formats import OPENERS
from safeflux.checkpoints.hints import PICKLES, is_lfs_pointer, lfs_pointer
from safeflux.checkpoints.source import Source
from safeflux.checkpoints.tensor_file import TensorFile
from safeflux.disk.canonical import read_json
from safeflux.disk.reading import look_through
from safeflux.errors import ModelError

_WEIGHTS = {
    *OPENERS,
    *PICKLES,
    *(".pt2", ".msgpack", ".h5", ".npz", ".npy", ".data"),
    *(".engine", ".plan", ".trt", ".mlpackage", ".tflite", ".torchscript"),
}
_SETTINGS = "config.json"
"""How the names of settings files end: `config.json`, `scheduler_config.json`; what an index says is judged itself."""
_SIGNATURES = re.compile(rb"GGUF|PK\x03\x04|\x80[\x02-\x05]|\x89HDF|\x93NUMPY")
"""The first bytes of weight files, whatever their names: GGUF, zip (torch.save), pickle, HDF5, NumPy."""
_NAMES_WITHIN = 1 << 22
"""The names of a file's tensors are within this many bytes from its beginning, uncompressed, in every such format."""
_BLOCKS, _CONTROL = (b"single_transformer_blocks.0.", b"single_blocks.0.", b"double_blocks.0."), b"controlnet_"
"""Tensor names of a FLUX transformer, and one of a ControlNet, which has the others too but draws nothing."""


@dataclass(frozen=True)
class Others:
    """The other files of a folder, by relative path.

    Attributes:
        copied: Files to copy.
        left_out: Weights that would be unguarded, and shard indices that name such weights.
        links: Links that point outside the folder, and their targets, which are copied.
    """

    copied: tuple[Path, ...]
    left_out: tuple[Path, ...]
    links: Mapping[Path, Path]


def other_files(source: Source, *, hidden: bool = False) -> Others:
    """Classify all files of a model's folder except the transformer's own weights; none for a single file.

    Args:
        source: The model.
        hidden: Look at hidden files too.

    Raises:
        ModelError: An index cannot be read, or a link is broken.
    """
    if not source.path.is_dir():
        return Others((), (), {})
    tree, own = look_through(source.path, hidden=hidden), {file.path for file in source.files}
    folders = {one.folder for one in components(source.path)} - {home_of(source.path), source.path}
    copied: list[Path] = []
    left_out: list[Path] = []
    for inside in tree.files:
        path = source.path / inside
        if path not in own:
            is_component = any(folder in path.parents for folder in folders)
            (left_out if _could_draw(path, own, is_component) else copied).append(inside)
    links = {inside: real for inside, real in tree.leading_out.items() if inside not in left_out}
    return Others(tuple(copied), tuple(left_out), links)


def settings_files(source: Source, files: Iterable[Path]) -> dict[str, Path]:
    """Return those of a folder's files that say how its parts draw, by their paths from the transformer's folder.

    Args:
        source: The model.
        files: Files of its folder, by relative path.
    """
    home = home_of(source.path)
    named = [inside for inside in files if inside.name.endswith(_SETTINGS)]
    return {Path(os.path.relpath(source.path / inside, home)).as_posix(): inside for inside in named}


def check_whole(root: Path, others: Others) -> None:
    """Check that a copy of a pipeline's folder would load wherever the pipeline does, and be guarded.

    Raises:
        ModelError: A component is missing or was never downloaded, or another one is also a FLUX transformer.
    """
    for component in unguarded(root):
        if not component.is_home:
            raise ModelError(
                f"{root}: names a second FLUX transformer, {component.name!r}, which would stay unguarded; bake each "
                "separately, and pass them to the pipeline when it is loaded"
            )
    for component in components(root):
        if component.is_needed and not component.folder.is_dir():
            raise ModelError(
                f"{root}: names the component {component.name!r}, but {component.folder} does not exist; copy the "
                f"model again, or bake its transformer alone: {home_of(root)}"
            )
        if component.folder == home_of(root) and not (component.folder / "config.json").is_file():
            raise ModelError(
                f"{component.folder}: has no config.json, so no pipeline can load it; copy the model again"
            )
        if component.folder != home_of(root):
            _check_component(component.folder, [root / inside for inside in others.left_out])
    for inside in others.copied:
        if (root / inside).suffix.lower() in _WEIGHTS and is_lfs_pointer(root / inside):
            raise lfs_pointer(root / inside)


def _check_component(folder: Path, left_out: Iterable[Path]) -> None:
    for weights in (*folder.glob("model*.safetensors"), *folder.glob("diffusion_pytorch_model*.safetensors")):
        TensorFile.open(weights)
    for index in folder.glob("*model.safetensors.index.json"):
        places = read_json(index).get("weight_map")
        named = {str(name) for name in places.values()} if isinstance(places, dict) else set()
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            raise ModelError(f"{index}: names {missing[0]}, which is missing; copy the model again")
    for path in left_out:
        if folder in path.parents:
            raise ModelError(
                f"{path}: is a second FLUX transformer, which would stay unguarded. Bake each separately, and pass "
                "them to the pipeline when it is loaded"
            )


def _could_draw(path: Path, own: set[Path], is_component: bool) -> bool:
    """Whether another file could be loaded as an unguarded FLUX, as far as can be determined."""
    if is_component:
        return _is_of_transformer(path)
    if path.suffix == ".json":
        return ".index." in path.name and not _names_only(path, own)
    return path.suffix.lower() in _WEIGHTS or _begins_as_weights(path)


def _is_of_transformer(path: Path) -> bool:
    """Whether a file of another component holds a FLUX transformer, by its tensors or the configuration beside it."""
    if path.suffix.lower() not in _WEIGHTS:
        return False
    config = path.parent / "config.json"
    if config.is_file() and FLUX_CLASS.fullmatch(str(read_json(config).get("_class_name"))):
        return True
    names = _beginning(path, _NAMES_WITHIN)
    return any(block in names for block in _BLOCKS) and _CONTROL not in names


def _names_only(index: Path, own: set[Path]) -> bool:
    """Whether an index of shards names only guarded files."""
    places = read_json(index).get("weight_map")
    known = {path.resolve() for path in own}
    return not isinstance(places, dict) or all(
        (index.parent / str(name)).resolve() in known for name in places.values()
    )


def _begins_as_weights(path: Path) -> bool:
    data = _beginning(path, 16)
    is_safetensors = data[8:9] == b"{" and int.from_bytes(data[:8], "little") < path.stat().st_size
    return is_safetensors or _SIGNATURES.match(data) is not None


def _beginning(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
