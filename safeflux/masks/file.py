"""Mask files on disk, written atomically and read strictly. `docs/mask-format.md` defines the format.

Bytes are read once, and those bytes are checked, hashed and decoded. Nothing in a file is executed.
"""

import difflib
import hashlib
import os
from pathlib import Path

from safeflux.disk.atomic import write_atomically
from safeflux.disk.reading import open_regular
from safeflux.errors import MaskFileError
from safeflux.masks.encoding import MAX_HEADER_BYTES, check_size, decode, encode
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta


def save_masks(path: str | os.PathLike[str], masks: MaskSet, meta: MaskMeta, *, overwrite: bool = True) -> str:
    """Write a mask file atomically, and return the sha256 of its bytes.

    The same masks and metadata give the same bytes on every machine.

    Args:
        path: The file.
        masks: The masks.
        meta: Their metadata.
        overwrite: Replace a file of this name.

    Raises:
        MaskFileError: The mask set is empty or too large for the format, or the file cannot be written.
    """
    data = encode(masks, meta)
    try:
        write_atomically(Path(path), data, overwrite=overwrite)
    except OSError as error:
        raise MaskFileError(
            f"{os.fspath(path)}: cannot be written ({error.strerror}); nothing was left behind"
        ) from error
    return hashlib.sha256(data).hexdigest()


def load_masks(path: str | os.PathLike[str]) -> tuple[MaskSet, MaskMeta]:
    """Read a mask file strictly.

    Law: `load_masks(p)` after `save_masks(p, masks, meta)` equals `(masks, meta)`.

    Raises:
        MaskFileError: The file cannot be read, or is not exactly what `save_masks` writes; the message names the
            tensor or key.
    """
    return decode(read_bytes(path), os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a mask file once, so that the hashed bytes are the decoded ones; never more bytes than its header gives.

    Raises:
        MaskFileError: The file cannot be read, or its size is not the one that its header gives.
    """
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            head = file.read(8 + MAX_HEADER_BYTES)
            if num_bytes > len(head):
                check_size(head, num_bytes)
            return head + file.read(max(0, num_bytes - len(head)))
    except MaskFileError as error:
        raise MaskFileError(f"{os.fspath(path)}: {error}") from error
    except OSError as error:
        hint = _near(Path(path)) if isinstance(error, FileNotFoundError) else ""
        raise MaskFileError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}); expected a mask file{hint}"
        ) from error


def _near(path: Path) -> str:
    """The end of a message about a file that does not exist: the mask file in its folder with the nearest name."""
    names = [each.name for each in path.parent.glob("*.safetensors")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""
