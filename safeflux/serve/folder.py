"""The policy folder of a service: read as a whole, written file by file, each atomically."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from safeflux.disk.atomic import write_atomically
from safeflux.disk.reading import read_regular
from safeflux.errors import PolicyError
from safeflux.policy.load import Policy, load_policy_texts
from safeflux.policy.yaml_reader import Issue, PolicyFileError

_ENDING = ".yaml"
_MOST = 1 << 20
"""Bytes of a policy file."""

Texts = Mapping[str, bytes]
"""Names of files -> their bytes."""


class PolicyFolder:
    """A folder in which each `NAME.yaml` is a policy; hidden files, other suffixes and subfolders are ignored."""

    def __init__(self, path: Path) -> None:
        """Open the folder.

        Raises:
            PolicyError: There is none.
        """
        if not path.is_dir():
            raise PolicyError(f"{path}: expected a folder of policies (NAME.yaml), got none; create it") from (
                FileNotFoundError(path)
            )
        self.path = path

    def read(self) -> dict[str, bytes]:
        """All files as they are now.

        Raises:
            PolicyError: One cannot be read.
        """
        found = {}
        try:
            for path in sorted(self.path.iterdir()):
                if path.suffix == _ENDING and not path.name.startswith("."):
                    found[path.name] = read_regular(path, _MOST)
        except (OSError, ValueError) as error:
            raise PolicyError(f"{self.path}: cannot be read ({error})") from error
        return found

    def write(self, before: Texts, after: Texts) -> None:
        """Write what differs; after an error, restore the files as far as the disk allows.

        Raises:
            PolicyError: A file cannot be written or removed.
        """
        try:
            self._write(before, after)
        except OSError as error:
            self._write_back(after, before)
            raise PolicyError(f"{self.path}: cannot be written to ({error.strerror or error})") from error

    def _write(self, before: Texts, after: Texts) -> None:
        for name, data in after.items():
            if before.get(name) != data:
                write_atomically(self.path / name, data)
        for name in before.keys() - after.keys():
            (self.path / name).unlink(missing_ok=True)

    def _write_back(self, before: Texts, after: Texts) -> None:
        try:
            self._write(before, after)
        except OSError:  # what stopped the first write stops this one too: then nothing was changed
            return


def policies_of(texts: Texts) -> dict[str, Policy]:
    """The effective policies of a folder's files, by name.

    Raises:
        PolicyFileError: One is not valid, or not named as its file, so that its receipts would name another policy.
    """
    found = load_policy_texts(texts)
    if renamed := [(file, policy.name) for file, policy in found.items() if policy.name != stem(file)]:
        problem = "name: expected {!r}, the name of the file, got {!r}; change one of them"
        raise PolicyFileError([Issue(file, 0, 0, problem.format(stem(file), name)) for file, name in renamed])
    return {policy.name: policy for policy in found.values()}


def stem(file: str) -> str:
    """The name of a file's policy."""
    return file.removesuffix(_ENDING)


def file_of(name: str) -> str:
    """The file of a policy."""
    return f"{name}{_ENDING}"


class Watcher:
    """Calls `look` periodically in a thread of its own, until it is stopped."""

    def __init__(self, look: Callable[[], None], seconds: float, name: str) -> None:
        """Start at once.

        Args:
            look: What is done; it raises nothing.
            seconds: Pause between two looks.
            name: Of the thread.
        """
        self._look, self._seconds, self._stop = look, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._look()

    def stop(self) -> None:
        """Stop, after the call in progress."""
        self._stop.set()
        self._thread.join(timeout=10)
