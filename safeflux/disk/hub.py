"""Models of the Hugging Face Hub that are already on this machine. Nothing is downloaded."""

from pathlib import Path

from safeflux.errors import ModelError


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
