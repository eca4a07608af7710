"""An append-only log of changes to models: one JSON object per line, each with the sha256 of the previous line.

    {"seq": 2, "action": "swap", "receipt": {...}, "previous": "9f86...", "sha256": "2c26..."}

`sha256` covers the line's other members as canonical JSON (keys sorted, no spaces). Each line has exactly one encoding:
its members in this order, the keys of the receipt sorted, ASCII. So reading the log detects edited, inserted, deleted,
moved or reformatted lines. Truncation at the end is detected with the last hash, which `append` returns: keep it
elsewhere. Neither receipts nor the log hold prompts or images.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from safeflux.disk.canonical import canonical_json, parse_json
from safeflux.disk.copying import write_all
from safeflux.disk.locking import file_locks
from safeflux.disk.reading import only_regular, open_regular
from safeflux.errors import AuditError

FIRST = "0" * 64
"""The `previous` of the first line."""
_START: dict[str, Any] = {"seq": 0, "sha256": FIRST}
_BEGINNING = b'{"seq": '
_BLOCK = 1 << 16
_MAX_LINE = 1 << 24
"""Bytes; a receipt takes a few thousand."""


class AuditLog:
    """A log that several threads and processes can append to; the file is created with the first line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, action: str, receipt: Mapping[str, Any]) -> str:
        """Append an action, with the receipt of the model after it; the line is on disk when this returns.

        Args:
            action: One word: `guard`, `swap`, `verify`, `undo`.
            receipt: `GuardHandle.receipt()`.

        Returns:
            The hash of the line, which is the new head of the log.

        Raises:
            AuditError: The last line is not a line of an audit log, or the file cannot be written to; nothing was
                appended.
        """
        fcntl = file_locks()

        try:
            facts = parse_json(canonical_json({"action": action, "receipt": receipt}))
        except (TypeError, ValueError, RecursionError) as error:
            raise AuditError(f"{self.path}: JSON cannot hold this receipt ({error}); nothing was appended") from error
        try:
            with _open_log(self.path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last, rest = _end(file)
                before = _parse(last) if last else _START
                if before is None or not rest.startswith(_BEGINNING[: len(rest)]):
                    raise AuditError(f"{self.path}: its last line is not a line of an audit log; nothing was appended")
                body = {"seq": before["seq"] + 1, **facts, "previous": before["sha256"]}
                line = {**body, "sha256": _hash(body)}
                _write(file, file.seek(0, os.SEEK_END) - len(rest), _encode(line))
        except OSError as error:
            raise AuditError(f"{self.path}: cannot be written to ({error.strerror}); nothing was appended") from error
        return str(line["sha256"])


@dataclass(frozen=True)
class Audit:
    """The result of reading a log."""

    lines: int
    head: str
    """Hash of the last line."""
    faults: tuple[str, ...]
    """`line 3: ...`, for each place where the chain is broken."""


def verify_log(path: str | os.PathLike[str], *, head: str | None = None) -> Audit:
    """Read a whole log and check its chain of hashes.

    Args:
        path: The log.
        head: The hash of a line that the log must contain: of its last line when the hash was kept.

    Raises:
        AuditError: The file cannot be read.
    """
    faults: list[str] = []
    lines, previous, known = 0, FIRST, {FIRST}
    try:
        with open_regular(path) as file:
            for lines, text in enumerate(_lines(file), 1):
                line = _parse(text)
                if line is None:
                    faults.append(f"line {lines}: is not a line of an audit log")
                    continue
                faults += [f"line {lines}: {fault}" for fault in _faults(line, lines, previous)]
                previous = line["sha256"]
                known.add(previous)
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror}); expected an audit log") from error
    if head is not None and head not in known:
        faults.append(f"line {lines}: the log ends without a line of hash {head}: it was truncated")
    return Audit(lines, previous, tuple(faults))


def read_line(path: str | os.PathLike[str], number: int | None = None) -> dict[str, Any]:
    """Return one line of an unbroken log: `seq`, `action`, `receipt`, `previous`, `sha256`.

    Args:
        path: The log.
        number: The number of the line, from 1; None for the last.

    Raises:
        AuditError: The file or the line does not exist, or a line is broken.
    """
    found = _check_unbroken(path)
    number = found.lines if number is None else number
    if not 1 <= number <= found.lines:
        known = f"expected a line from 1 to {found.lines}" if found.lines else "an empty log has no lines"
        raise AuditError(f"{path}: {known}, got {number}")
    with open_regular(path) as file:
        text = next(islice(_lines(file), number - 1, None), b"")
    line = _parse(text)
    if line is None or _hash(line) != line["sha256"]:
        raise AuditError(f"{path}: line {number} was changed while it was read; try again")
    return line


def read_last(path: str | os.PathLike[str], count: int) -> list[dict[str, Any]]:
    """Return the last lines of a log as `read_line` does, the newest first, whether or not the chain is unbroken.

    Raises:
        AuditError: There is no such file.
    """
    try:
        with open_regular(path) as file:
            last = deque(_lines(file), maxlen=count)
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror}); expected an audit log") from error
    return [line for line in map(_parse, reversed(last)) if line is not None]


def read_unbroken(path: str | os.PathLike[str], count: int | None = None) -> list[dict[str, Any]]:
    """Return the last lines of a log in which no line is broken, the oldest first.

    Args:
        path: The log.
        count: How many; without, all.

    Raises:
        AuditError: There is no such file, or a line of it is broken.
    """
    found = _check_unbroken(path)
    return read_last(path, min(found.lines, count or found.lines))[::-1]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(_MAX_LINE), b"")


def _check_unbroken(path: str | os.PathLike[str]) -> Audit:
    found = verify_log(path)
    if found.faults:
        raise AuditError(f"{path}: {found.faults[0]}; a broken log is not used")
    return found


def _faults(line: Mapping[str, Any], number: int, previous: str) -> Iterator[str]:
    if _hash(line) != line["sha256"]:
        yield "its hash is not that of its content: it was edited"
    if line["previous"] != previous:
        yield "the previous line is not the one that it followed: a line was edited, inserted, deleted or moved"
    elif line["seq"] != number:
        yield f"its seq is {line['seq']}"


def _parse(text: bytes) -> dict[str, Any] | None:
    """The members of a whole line; None if it is not a line of a log, or not encoded as `append` does."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    expected = {"seq": int, "action": str, "receipt": dict, "previous": str, "sha256": str}
    is_line = isinstance(line, dict) and line.keys() == expected.keys() and text.endswith(b"\n")
    if not (is_line and all(type(line[key]) is kind for key, kind in expected.items())):
        return None
    return line if _encode(line) == text else None


def _encode(line: Mapping[str, Any]) -> bytes:
    """The one encoding of a line, with its line break."""
    receipt = json.loads(canonical_json(line["receipt"]))  # with its keys sorted
    members = {key: line[key] for key in ("seq", "action")} | {"receipt": receipt}
    members |= {key: line[key] for key in ("previous", "sha256")}
    return json.dumps(members, allow_nan=False).encode() + b"\n"


def _hash(line: Mapping[str, Any]) -> str:
    """The hash of a line's other members."""
    body = {key: value for key, value in line.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _write(file: FileIO, end: int, line: bytes) -> None:
    """Write a line after the last whole one; after an error the file ends there."""
    file.truncate(end)
    try:
        write_all(file, memoryview(line))
        os.fsync(file.fileno())
    except BaseException:
        os.ftruncate(file.fileno(), end)
        raise


def _open_log(path: Path) -> FileIO:
    """Open a log to read and append, and create it if it does not exist; OSError if it is not a regular file."""
    return open(path, "a+b", buffering=0, opener=only_regular)


def _end(file: FileIO) -> tuple[bytes, bytes]:
    """The last whole line, empty if there is none, and the partial line after it that a killed writer left."""
    end = file.seek(0, os.SEEK_END)
    tail, start = b"", end
    while start and tail.count(b"\n") < 2 and len(tail) < 2 * _MAX_LINE:
        start = max(0, start - max(_BLOCK, len(tail)))
        file.seek(start)
        tail = file.read(end - start)
    cut = tail.rfind(b"\n") + 1
    whole, rest = tail[:cut], tail[cut:]
    return whole[whole.rfind(b"\n", 0, -1) + 1 :], rest
