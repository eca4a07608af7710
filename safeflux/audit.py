"""An append-only log of what was done to models: one JSON object a line, each with the sha256 of the line before it.

    {"seq": 2, "action": "swap", "receipt": {...}, "previous": "9f86...", "sha256": "2c26..."}

`sha256` is that of the line's other members as canonical JSON (keys sorted, no spaces). So a line that was edited, put
in, taken out or moved is found by whoever reads the log. Lines that were cut off at the end are found by whoever kept
the last hash, which `append` returns: keep it elsewhere. A receipt holds no prompt and no image, nor does the log.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safeflux.errors import AuditError

FIRST = "0" * 64
"""What the first line has for the hash of the line before it."""
_START: dict[str, Any] = {"seq": 0, "sha256": FIRST}
_BEGINNING = b'{"seq": '
_BLOCK = 1 << 16


class AuditLog:
    """A log to append to, by several threads and processes at once; the file is made with the first line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, action: str, receipt: Mapping[str, Any]) -> str:
        """Append what was done, with the receipt of the model after it; the line is on the disk when this returns.

        Args:
            action: In a word: `guard`, `swap`, `verify`, `undo`.
            receipt: `GuardHandle.receipt()`.

        Returns:
            The hash of the line, which is the head of the log now.

        Raises:
            AuditError: The last line is not one of a log, or the file cannot be written to; nothing was appended.
        """
        import fcntl  # of POSIX systems alone

        try:
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last, rest = _end(file)
                before = _parse(last) if last else _START
                if before is None or not rest.startswith(_BEGINNING[: len(rest)]):
                    raise AuditError(f"{self.path}: its last line is none of an audit log; nothing was appended")
                file.truncate(file.seek(0, os.SEEK_END) - len(rest))
                body = {"seq": before["seq"] + 1, "action": action, "receipt": receipt, "previous": before["sha256"]}
                line = {**body, "sha256": _hash(body)}
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AuditError(f"{self.path}: cannot be written to ({error.strerror}); nothing was appended") from error
        return str(line["sha256"])


@dataclass(frozen=True)
class Audit:
    """What reading a log found."""

    lines: int
    head: str
    """Hash of the last line."""
    faults: tuple[str, ...]
    """`line 3: ...`, for each place where the chain is broken."""


def verify_log(path: str | os.PathLike[str], *, head: str | None = None) -> Audit:
    """Read a whole log.

    Args:
        path: The log.
        head: The hash that its last line must have, or that of an earlier line, if the log has grown since.

    Raises:
        AuditError: There is no such file.
    """
    faults: list[str] = []
    lines, previous, known = 0, FIRST, {FIRST}
    try:
        with Path(path).open("rb") as file:
            for lines, text in enumerate(file, 1):
                line = _parse(text)
                if line is None:
                    faults.append(f"line {lines}: not a line of an audit log")
                    continue
                faults += [f"line {lines}: {fault}" for fault in _faults(line, lines, previous)]
                previous = line["sha256"]
                known.add(previous)
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror}); expected an audit log") from error
    if head is not None and head not in known:
        faults.append(f"line {lines}: the log ends without the line of the hash {head}: lines were cut off")
    return Audit(lines, previous, tuple(faults))


def _faults(line: Mapping[str, Any], number: int, previous: str) -> Iterator[str]:
    body = {key: value for key, value in line.items() if key != "sha256"}
    if _hash(body) != line["sha256"]:
        yield "it does not have the hash that it says: it was edited"
    if line["previous"] != previous:
        yield "the line before is not the one that it followed: a line was edited, put in, taken out or moved"
    elif line["seq"] != number:
        yield f"it says that it is line {line['seq']}"


def _parse(text: bytes) -> dict[str, Any] | None:
    """The members of a whole line; None if it is none of a log."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    expected = {"seq": int, "action": str, "receipt": dict, "previous": str, "sha256": str}
    is_line = isinstance(line, dict) and line.keys() == expected.keys() and text.endswith(b"\n")
    return line if is_line and all(type(line[key]) is kind for key, kind in expected.items()) else None


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _end(file: BinaryIO) -> tuple[bytes, bytes]:
    """The last whole line, empty if there is none, and the part of one after it that a killed writer left."""
    end = file.seek(0, os.SEEK_END)
    tail, start = b"", end
    while start and tail.count(b"\n") < 2:
        start = max(0, start - _BLOCK)
        file.seek(start)
        tail = file.read(end - start)
    cut = tail.rfind(b"\n") + 1
    whole, rest = tail[:cut], tail[cut:]
    return whole[whole.rfind(b"\n", 0, -1) + 1 :], rest
