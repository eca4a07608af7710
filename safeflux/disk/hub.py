"""Models of the Hugging Face hub that are on this machine already. Nothing is downloaded."""

from pathlib import Path

from safeflux.errors import ModelError


def local_folder(name: str) -> Path:
    """The folder of a model: the path itself, or the snapshot that `hf download` made of an id.

    Args:
        name: A path that exists, or `ORG/NAME`, or `ORG/NAME@REVISION`.

    Raises:
        ModelError: There is no such path, and no such model was downloaded; it names the command that downloads it.
    """
    if Path(name).exists():
        return Path(name)
    identity, at, revision = name.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(identity, revision=revision or None, local_files_only=True))
    except HFValidationError as error:
        raise ModelError(f"{name}: there is no such folder; expected one, or an id of the hub (ORG/NAME)") from error
    except LocalEntryNotFoundError as error:
        command = f"hf download {identity}" + (f" --revision {revision}" if at else "")
        raise ModelError(
            f"{name}: there is no such folder, and no model of that id on this machine; get it with: {command}"
        ) from error
