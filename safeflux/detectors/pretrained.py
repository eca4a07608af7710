"""Models of transformers for detectors: a folder, or an id of the Hugging Face hub that is already on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeflux.disk.hub import local_folder
from safeflux.errors import ConfigError
from safeflux.reference import SECOND


def load(kind: str, argument: str, make: Callable[[Path], Any]) -> Any:
    """Load from `FOLDER`, `ID`, `ID@REVISION` or, for the CLIP of the embedded model, `emoji-clip`; without a network.

    Args:
        kind: The kind of detector, for errors.
        argument: The folder, the id or the name.
        make: Called with the folder.

    Raises:
        ConfigError: Nothing is named, or it is a model of another kind.
        ModelError: There is no such folder, and no such model was downloaded.
    """
    if not argument:
        raise ConfigError(f"detector '{kind}': expected a folder or a hub id behind it, e.g. {kind}:FOLDER")
    from safeflux.reference.model import EMOJI_CLIP, quiet

    folder = EMOJI_CLIP if argument == SECOND else local_folder(argument)
    try:
        with quiet():
            return make(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and what its readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"detector {kind}:{argument}: cannot be loaded; expected a folder that `save_pretrained` of transformers "
            f"wrote, of a model of this kind ({reason})"
        ) from error


def whole(kind: Any, folder: Path) -> Any:
    """A model of one of transformers' classes; ValueError where the files lack some of its weights."""
    model, seen = kind.from_pretrained(folder, output_loading_info=True)
    if seen["missing_keys"]:  # transformers fills them with random numbers
        raise ValueError(f"it has no weights for {', '.join(sorted(seen['missing_keys'])[:3])}")
    return model
