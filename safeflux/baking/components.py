"""The components of a pipeline's folder according to its index, for diffusers' pipelines and modular pipelines."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux.checkpoints.checkpoint import home_of
from safeflux.disk.canonical import read_json

_INDEX, _MODULAR = "model_index.json", "modular_model_index.json"
_CONFIGS = (_MODULAR, "modular_config.json", "config.json")
"""Files that may name classes in a folder's own code under `auto_map`."""
FLUX_CLASS = re.compile(r"Flux\d*Transformer2DModel")
"""diffusers' classes of FLUX transformers."""
_PLACES = ("pretrained_model_name_or_path", "repo")
"""Keys of a modular entry with the place that the component is loaded from, in newer and older releases."""


@dataclass(frozen=True)
class Component:
    """One entry of an index.

    Attributes:
        name: As the pipeline calls it.
        folder: Where its files are.
        is_needed: Whether the pipeline needs that folder to load.
        is_home: Whether it is the guarded transformer.
        is_flux: Whether its class is that of a FLUX transformer.
        elsewhere: Where a modular pipeline loads it from, if the index says so.
    """

    name: str
    folder: Path
    is_needed: bool
    is_home: bool
    is_flux: bool
    elsewhere: str | None = None


def components(root: Path) -> list[Component]:
    """Read the indices of a folder; components that the pipeline does not have are left out.

    Raises:
        ModelError: An index cannot be read.
    """
    found, home = [], home_of(root)
    for index in (_INDEX, _MODULAR):
        entries = read_json(root / index) if (root / index).is_file() else {}
        for name, entry in entries.items():
            if isinstance(entry, list) and any(entry) and not name.startswith("_"):
                facts = _facts(entry)
                elsewhere = next((str(facts[key]) for key in _PLACES if facts.get(key)), None)
                folder = root / str(facts.get("subfolder") or name)
                is_home = name == home.name or folder == home
                is_flux = len(entry) > 1 and FLUX_CLASS.fullmatch(str(entry[1])) is not None
                found.append(Component(name, folder, index == _INDEX, is_home, is_flux, elsewhere))
    return found


def unguarded(root: Path) -> list[Component]:
    """Return the transformers that a pipeline loads from somewhere other than the guarded folder."""
    return [one for one in components(root) if (one.is_home or one.is_flux) and not _is_guarded(one, root)]


def own_code(root: Path) -> dict[str, Path]:
    """Return the files of Python in a folder whose classes its index names, by the entry: a pipeline, a component.

    So do the configurations of modular pipelines and of components, under `auto_map`: a file, or another repository.

    Raises:
        ModelError: An index or a configuration cannot be read.
    """
    found = {}
    for index in (_INDEX, _MODULAR):
        entries = read_json(root / index) if (root / index).is_file() else {}
        for name, entry in entries.items():
            if isinstance(entry, list) and any(entry):
                folder = root if name == "_class_name" else root / str(_facts(entry).get("subfolder") or name)
                found[name] = folder / f"{entry[0]}.py"
    found = {name: path for name, path in found.items() if path.is_file()}
    folders = {root, home_of(root), *(one.folder for one in components(root))}
    for config in (folder / name for folder in sorted(folders) for name in _CONFIGS if (folder / name).is_file()):
        classes = read_json(config).get("auto_map")
        for name, place in classes.items() if isinstance(classes, dict) else ():
            repository, _, inside = str(place).rpartition("--")
            path = config.parent / f"{inside.partition('.')[0]}.py"
            if repository or path.is_file():
                found[f"{os.path.relpath(config, root)}: {name}"] = Path(str(place)) if repository else path
    return found


def made_local(root: Path) -> dict[Path, Any]:
    """Return the index of a modular pipeline, changed to load its transformer from its own folder; empty if not needed.

    An index that names its own folder is changed too: in a copy it would name the source.
    """
    home = home_of(root)
    if not any(one.is_home and (one.elsewhere or one.folder != home) for one in components(root)):
        return {}
    entries = read_json(root / _MODULAR)
    for name, entry in entries.items():
        if isinstance(entry, list) and (name == home.name or root / str(_facts(entry).get("subfolder")) == home):
            own = {"subfolder": home.name, "variant": None, "revision": None}
            facts = _facts(entry)
            entry[2:] = [facts | own | {key: None for key in _PLACES if key in facts}]
    return {Path(_MODULAR): entries}


def _facts(entry: list[Any]) -> dict[str, Any]:
    """Where a component comes from; only modular indices say so."""
    return entry[2] if len(entry) > 2 and isinstance(entry[2], dict) else {}


def _is_guarded(component: Component, root: Path) -> bool:
    is_here = component.elsewhere is None or Path(component.elsewhere).resolve() == root.resolve()
    return component.folder == home_of(root) and is_here
