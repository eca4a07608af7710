"""Where policies and masks are: the folder `models/safeflux`, and those that `extra_model_paths.yaml` gives that name.

A workflow may come from anywhere, so it chooses among the files of these folders and names no path of its own.
"""

import hashlib
import os
from pathlib import Path

import folder_paths

from safeflux import bundled_policies, load_policy, open_store

NAME = "safeflux"
ALL = "models/safeflux"
"""The store that has the masks of all these folders."""


def register() -> None:
    """Let the engine know the folder, beside those that its configuration gives the same name."""
    given, _ = folder_paths.folder_names_and_paths.get(NAME, ([], set()))
    own = os.path.join(folder_paths.models_dir, NAME)
    folder_paths.folder_names_and_paths[NAME] = (list(dict.fromkeys([*given, own])), {".yaml", ".yml"})


def policies() -> list[str]:
    """Return the names of the bundled policies, then the policy files in the folders."""
    return [*bundled_policies(), *folder_paths.get_filename_list(NAME)]


def policy_file(policy: str) -> str:
    """Return what `load_policy` takes for one of `policies`."""
    return policy if policy in bundled_policies() else folder_paths.get_full_path_or_raise(NAME, policy)


def stores() -> dict[str, list[Path]]:
    """Return the stores by name: all folders together, and each of their subfolders alone."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(NAME) if os.path.isdir(root)]
    inner = sorted(path for root in roots for path in root.iterdir() if path.is_dir())
    return {ALL: roots, **{f"{ALL}/{path.name}": [path] for path in inner}}


def state(policy: str, store: str) -> str:
    """Return a text that is another one after any change of the policy, its parents, or a mask file."""
    effective = load_policy(policy_file(policy))
    found = hashlib.sha256(f"{effective.name} {effective.digest}\n".encode())
    for root in open_store(stores()[store]).roots:
        for path in sorted(root.rglob("*.safetensors*")):
            about = path.stat()
            found.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return found.hexdigest()
