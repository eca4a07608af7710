"""What a model's folder holds beside the transformer's weights, and what of it goes along into a guarded copy.

Weights that nobody asked for stay behind: the whole model in one file beside the folders, another precision of it.
They would be unguarded, and a loader could pick them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safeflux.checkpoint import Checkpoint, home_of
from safeflux.errors import ModelError

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".data"}


@dataclass(frozen=True)
class Others:
    """Files by their paths in the folder."""

    copied: tuple[Path, ...]
    left_out: tuple[Path, ...]


def other_files(source: Checkpoint) -> Others:
    """Sort all files of a model's folder but the transformer's own weights; none for a single file.

    Raises:
        ModelError: `model_index.json` cannot be read.
    """
    if not source.path.is_dir():
        return Others((), ())
    own = {file.path for file in source.files}
    home, components = home_of(source.path), _components(source.path)
    copied: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(source.path.rglob("*")):
        inside = path.relative_to(source.path)
        if not path.is_file() or path in own or any(part.startswith(".") for part in inside.parts):
            continue
        is_component = inside.parts[0] in components and home not in path.parents
        is_wanted = is_component or path.suffix not in _WEIGHTS
        (copied if is_wanted else left_out).append(inside)
    return Others(tuple(copied), tuple(left_out))


def _components(root: Path) -> set[str]:
    """The folders of a pipeline, by its index."""
    index = root / "model_index.json"
    if not index.is_file():
        return set()
    try:
        entries: Mapping[str, object] = json.loads(index.read_text(encoding="utf-8"))
        return {name for name, value in entries.items() if isinstance(value, list)}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{index}: cannot be read as the index of a pipeline ({error})") from error
