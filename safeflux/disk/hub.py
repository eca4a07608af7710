"""Repositories of the Hugging Face Hub: models that are already on this machine, and masks, which are downloaded."""

import re
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from safeflux.errors import ModelError, StoreError

ADDRESS = "hf://"
"""How the address of a repository with masks begins: `hf://ORG/NAME@COMMIT`."""
PINNED = rf"{ADDRESS}([\w.-]+/[\w.-]+)@([0-9a-f]{{40}})"
"""The pattern of such an address: repository, and commit."""
_MASKS = ("*.safetensors", "*.sig", "*.json", "*.md")
_PATIENCE = (3.0, 15.0, 15.0, 3.0)
"""Seconds until the hub counts as out of reach: to connect, to answer, to take a request, to get a connection."""


def local_folder(name: str) -> Path:
    """The folder of a model: the path itself, or the snapshot that `hf download` created for an id.

    Args:
        name: A path that exists, or `ORG/NAME`, or `ORG/NAME@REVISION`.

    Raises:
        ModelError: The path does not exist, and the model was not downloaded; the message has the command for it.
    """
    if Path(name).exists():
        return Path(name)
    identity, at, revision = name.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(identity, revision=revision or None, local_files_only=True))
    except HFValidationError as error:
        raise ModelError(f"{name}: does not exist; expected a folder, or an id of the hub (ORG/NAME)") from error
    except LocalEntryNotFoundError as error:
        command = f"hf download {identity}" + (f" --revision {revision}" if at else "")
        raise ModelError(
            f"{name}: does not exist as a folder, nor as a downloaded model; get it with: {command}"
        ) from error


@cache
def masks_at(address: str) -> Path:
    """The folder of a repository's mask files at a commit. Files that are not on this machine are downloaded first.

    Args:
        address: `hf://ORG/NAME@COMMIT`, with all 40 digits of the commit: what a branch or a tag names can change.

    Raises:
        StoreError: The address is another one; or the repository cannot be reached and was not downloaded before.
    """
    pinned = re.fullmatch(PINNED, address)
    if pinned is None:
        raise StoreError(f"store {address}: {fault_of(address)}")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, commit = pinned.groups()
    try:
        return _snapshot(repository, commit)
    except HFValidationError as error:
        raise StoreError(f"store {address}: expected hf://ORG/NAME@COMMIT ({error})") from error
    except LocalEntryNotFoundError as error:
        raise StoreError(
            f"store {address}: the hub cannot be reached, and this commit is not on this machine; get it with: "
            f"hf download {repository} --revision {commit}"
        ) from error
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(
            f"store {address}: the hub refuses it ({reason}); check the name and the commit, and for a private "
            "repository log in with: hf auth login"
        ) from error


def _snapshot(repository: str, commit: str) -> Path:
    """The folder of a commit, without a network if all of it is here: a commit never changes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    get = partial(snapshot_download, repository, revision=commit, allow_patterns=list(_MASKS))
    if _is_listed(repository, commit):  # without a list, a folder may be a part of the commit
        with suppress(LocalEntryNotFoundError):
            return Path(get(local_files_only=True))
    return Path(get(local_files_only=not _answers(repository, commit)))


def _is_listed(repository: str, commit: str) -> bool:
    """Whether the library knows without a network which files a commit has; its older versions never do."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return False
    try:
        get_cached_repo_tree(repository, revision=commit)
    except CachedRepoTreeNotFoundError:
        return False
    return True


def _answers(repository: str, commit: str) -> bool:
    """Whether the hub can be reached, asked once: the library itself tries for half a minute, or for ever."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(f"{constants.ENDPOINT}/api/models/{repository}/revision/{commit}", timeout=_PATIENCE)
    except Exception:  # whose class depends on the library's client; offline mode is one of them
        return False
    return True


def fault_of(address: str) -> str | None:
    """What is wrong with the address of a repository of masks, or None.

    Examples:
        >>> fault_of("hf://org/masks@main").partition(";")[0]
        "expected hf://ORG/NAME@COMMIT with the 40 digits of a commit, got 'main', which can move"
    """
    if re.fullmatch(PINNED, address):
        return None
    repository, _, revision = address.removeprefix(ADDRESS).partition("@")
    what = f"got {revision!r}, which can move" if revision else "got none"
    return (
        f"expected hf://ORG/NAME@COMMIT with the 40 digits of a commit, {what}; commits are listed "
        f"by: git ls-remote https://huggingface.co/{repository or 'ORG/NAME'}"
    )
