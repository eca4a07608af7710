"""A lock file: the policy, base weights and mask files that were tested together, each by its digest.

    {"format": "safeflux-lock/1", "policy": {"name": "shop", "sha256": "..."}, "base": "sf1-...",
     "masks": {"weapons": "sha256 of its file", ...}, "stores": ["hf://ORG/NAME@COMMIT", ...]}

The policy's digest covers the effective policy, parents included. Loading with a lock gives exactly that, or an error.
"""

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from safeflux.disk.atomic import write_atomically
from safeflux.disk.canonical import MAX_BYTES, canonical_json, parse_mapping
from safeflux.disk.reading import read_regular
from safeflux.errors import PolicyError
from safeflux.families.fingerprint import same_base
from safeflux.plan.resolve import Plan
from safeflux.policy.schema import Digest, Name, Strict
from safeflux.policy.validate import show


class LockedPolicy(Strict):
    """The effective policy."""

    name: Name
    sha256: Digest


class Lock(Strict):
    """The content of a lock file."""

    format: Literal["safeflux-lock/1"] = "safeflux-lock/1"
    policy: LockedPolicy
    base: str
    """Fingerprint of the base weights."""
    masks: dict[Name, Digest]
    """Mask set -> sha256 of its file; for every category, enforced or not."""
    stores: tuple[str, ...] = ()
    """Repositories that some of these files are from: where to get them. What counts is the files' digests."""

    @classmethod
    def of(cls, plan: Plan) -> "Lock":
        """The lock of a plan."""
        policy = LockedPolicy(name=plan.policy.name, sha256=plan.policy.digest)
        stored = [one for category in plan.categories.values() for one in category.stored]
        stores = tuple(sorted({one.address for one in stored if one.address}))
        return cls(policy=policy, base=plan.base, masks={one.name: one.sha256 for one in stored}, stores=stores)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; the same lock gives the same bytes."""
        left_out = set() if self.stores else {"stores"}
        text = json.dumps(self.model_dump(exclude=left_out), indent=2, sort_keys=True) + "\n"
        try:
            write_atomically(Path(path), text.encode())
        except OSError as error:
            raise PolicyError(f"{os.fspath(path)}: cannot be written ({error.strerror})") from error


def read_lock(path: str | os.PathLike[str]) -> Lock:
    """Read a lock file.

    Raises:
        PolicyError: It cannot be read, or is not a lock file.
    """
    try:
        return Lock.model_validate_json(canonical_json(parse_mapping(read_regular(path, MAX_BYTES))))
    except OSError as error:
        raise PolicyError(f"{os.fspath(path)}: cannot be read ({error.strerror}); expected a lock file") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        is_missing = first["type"] == "missing"
        fault = f"it lacks {where!r}" if is_missing else f"{where}: {first['msg']}, got {show(first['input'])}"
        raise PolicyError(
            f"{os.fspath(path)}: is not a lock file of this format: {fault}. Write it again with "
            "`safeflux policy lock`."
        ) from error
    except ValueError as error:
        raise PolicyError(
            f"{os.fspath(path)}: is not a lock file of this format: {error}. Write it again with "
            "`safeflux policy lock`."
        ) from error


def check_lock(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Compare a plan with a lock file.

    Raises:
        PolicyError: They differ, with every difference in the message; or the lock cannot be read.
    """
    locked, now = read_lock(path), Lock.of(plan)
    names = sorted(locked.masks.keys() | now.masks.keys())
    differences = [
        f"mask set {name!r} is {_short(now.masks.get(name))}, locked was {_short(locked.masks.get(name))}"
        for name in names
        if locked.masks.get(name) != now.masks.get(name)
    ]
    if locked.policy.sha256 != now.policy.sha256:
        mine, theirs = (f"{one.name!r} ({_short(one.sha256)})" for one in (now.policy, locked.policy))
        differences.insert(0, f"the policy is {mine}, locked was {theirs}")
    if not same_base(locked.base, now.base):
        differences.append("the base weights differ")
    if differences:
        raise PolicyError(
            f"{os.fspath(path)}: this differs from the lock: {'; '.join(differences)}. If the change is intended, lock "
            "again with `safeflux policy lock`."
        )


def _short(sha256: str | None) -> str:
    return f"sha256:{sha256[:12]}..." if sha256 else "none"
