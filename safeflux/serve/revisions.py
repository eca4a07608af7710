"""Revisions of a service's policies, and the folder in which they survive a restart.

`FOLDER/revisions.json` holds the revision in force and those before it, each text once. It is replaced as a whole, and
carries the sha256 of its content: a damaged file is refused, never read in part.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safeflux.disk.atomic import write_atomically
from safeflux.disk.canonical import canonical_json, parse_mapping
from safeflux.disk.locking import locked
from safeflux.disk.reading import read_regular
from safeflux.errors import ConfigError, PolicyError
from safeflux.policy.load import Policy
from safeflux.serve.folder import Texts

KEPT = 16
"""Number of revisions kept for rollback."""
_FORMAT = "safeflux-revisions/1"
_FILE = "revisions.json"
_MOST = 1 << 25
"""Bytes of the file; the oldest revisions go first."""


@dataclass(frozen=True, kw_only=True)
class PastRevision:
    """All policies at one point in time: what is needed to go back to it."""

    number: int
    by: str
    """Who made it: the name of a token, `folder`, or `start`."""
    digests: Mapping[str, str]
    """Name -> sha256."""
    since: Mapping[str, datetime]
    """When each was put in force in its present form."""
    texts: Texts
    """The folder's files."""


@dataclass(frozen=True, kw_only=True)
class Revision(PastRevision):
    """The policies in force."""

    policies: Mapping[str, Policy]

    @classmethod
    def after(cls, old: PastRevision | None, policies: Mapping[str, Policy], texts: Texts, by: str) -> "Revision":
        """The revision that follows another; a policy that is in both keeps its time."""
        now = datetime.now(UTC)
        digests = {name: policy.digest for name, policy in policies.items()}
        before = old.digests if old else {}
        kept = {name: old.since[name] for name in before if old and before[name] == digests.get(name)}
        return cls(
            number=old.number + 1 if old else 1,
            by=by,
            digests=digests,
            since={name: kept.get(name, now) for name in policies},
            texts=dict(texts),
            policies=policies,
        )


class RevisionFolder:
    """Where a service keeps its revisions. One process at a time has it open."""

    def __init__(self, path: Path) -> None:
        """Create the folder if needed, lock it, and read what it has.

        Raises:
            ConfigError: It cannot be created, read or locked; another process has it open; or the file is damaged.
        """
        self.path = path / _FILE
        with ExitStack() as opened:
            try:
                opened.enter_context(locked(path))
            except OSError as error:
                raise ConfigError(
                    f"{path}: cannot be used to keep revisions ({error.strerror}); expected a folder that can be "
                    "written to"
                ) from error
            self.found = self._read()
            """The revisions that it had, the oldest first; the last one was in force."""
            self._opened = opened.pop_all()

    def write(self, revisions: Sequence[PastRevision]) -> None:
        """Replace the file.

        Args:
            revisions: The oldest first.

        Raises:
            PolicyError: It cannot be written; the older file is unchanged.
        """
        data = _encode(revisions)
        while len(data) > _MOST and len(revisions) > 1:
            revisions = revisions[1:]
            data = _encode(revisions)
        try:
            write_atomically(self.path, data)
        except OSError as error:
            raise PolicyError(f"{self.path}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Unlock the folder."""
        self._opened.close()

    def _read(self) -> tuple[PastRevision, ...]:
        try:
            data = read_regular(self.path, 2 * _MOST)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read ({error.strerror}); check its permissions") from error
        try:
            return tuple(_decode(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if type(error) is ValueError else "its content is not what a service writes"
            raise ConfigError(
                f"{self.path}: is damaged ({reason}); expected the revisions of a service ({_FORMAT}). Restore it from "
                "a backup, or move it away to start without earlier revisions"
            ) from error


def resume(
    found: Sequence[PastRevision], policies: Mapping[str, Policy], texts: Texts
) -> tuple[Revision, tuple[PastRevision, ...]]:
    """The revision in force after a start, and those before it.

    If the folder was edited while no service ran, the revision that was in force before becomes an earlier one.

    Args:
        found: The revisions that were kept, the oldest first.
        policies: All that are in force now.
        texts: The folder's files.
    """
    last = found[-1] if found else None
    made = Revision.after(last, policies, texts, "start")
    if last is None or last.texts != made.texts:
        return made, tuple(found)[-KEPT:]
    if last.digests == made.digests:
        made = replace(made, number=last.number, by=last.by)
    return made, tuple(found[:-1])[-KEPT:]


def _encode(revisions: Iterable[PastRevision]) -> bytes:
    texts: dict[str, str] = {}
    rows = []
    for one in revisions:
        files = {file: hashlib.sha256(data).hexdigest() for file, data in one.texts.items()}
        texts |= {files[file]: data.decode() for file, data in one.texts.items()}
        policies = {
            name: {"sha256": sha256, "since": one.since[name].isoformat()} for name, sha256 in one.digests.items()
        }
        rows.append({"number": one.number, "by": one.by, "policies": policies, "files": files})
    body = {"format": _FORMAT, "revisions": rows, "texts": texts}
    return canonical_json({**body, "sha256": _hash(body)}).encode()


def _decode(data: bytes) -> Iterable[PastRevision]:
    body = parse_mapping(data)
    if body.get("format") != _FORMAT:
        raise ValueError(f"its format is {body.get('format')!r}")
    if body.pop("sha256") != _hash(body):
        raise ValueError("its sha256 is not that of its content")
    for row in body["revisions"]:
        policies = row["policies"]
        yield PastRevision(
            number=row["number"],
            by=row["by"],
            digests={name: facts["sha256"] for name, facts in policies.items()},
            since={name: datetime.fromisoformat(facts["since"]) for name, facts in policies.items()},
            texts={file: body["texts"][sha256].encode() for file, sha256 in row["files"].items()},
        )


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
