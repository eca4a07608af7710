"""The policies that a service offers, and how they change: checked, planned, logged, put in force; all or nothing.

Policies given at the start are fixed; the others are in its folder. A change is a PUT, a DELETE or a rollback, each of
which writes to the folder, or an edit of the folder by others. The audit log records the request before anything is
done, and the outcome afterwards. If any step fails, the old policies stay in force and in the folder.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn

from safeflux.errors import ApplyError, AuditError, PolicyError, SafeFluxError
from safeflux.evidence.audit import AuditLog
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy
from safeflux.policy.validate import suggest
from safeflux.serve.engine import Drawn, Engine, PictureRequest
from safeflux.serve.folder import PolicyFolder, Texts, file_of, policies_of
from safeflux.serve.revisions import KEPT, PastRevision, Revision, RevisionFolder, resume

CHANGE = "safeflux-change/1"
"""The format of log lines about requested and refused changes."""
_NEXT = " (next)"
"""Suffix of the pool's name for a previewed policy; names of offered policies cannot contain a space."""
_WAIT = 30.0
"""Seconds to wait for another change to finish."""

_log = logging.getLogger(__name__)


class BusyError(SafeFluxError, RuntimeError):
    """Another change is in progress."""


class StaleError(SafeFluxError, RuntimeError):
    """The policies have changed since the revision that the change was based on."""


class Desk:
    """What is offered now, and the only way to change it."""

    def __init__(
        self,
        engine: Engine,
        fixed: Mapping[str, Policy],
        default: str,
        *,
        folder: PolicyFolder | None = None,
        texts: Texts | None = None,
        named: Collection[str] = (),
        state: RevisionFolder | None = None,
        audit: AuditLog | None = None,
        changed: Callable[[str], None] = lambda how: None,
    ) -> None:
        """Adopt the policies that the engine has in force, and log them.

        Args:
            engine: It has a pool of all these policies.
            fixed: Those that stay.
            default: The policy of requests that name none.
            folder: Where the others are.
            texts: Its files, as they were read for the engine.
            named: Policies that tokens name, so that they cannot be removed.
            state: Where revisions are kept; without, in memory alone.
            audit: The log.
            changed: Called after each change, or refusal, with its name.

        Raises:
            PolicyError: The revisions cannot be written.
            AuditError: The log takes no line.
        """
        self.engine, self.fixed, self.default, self.folder, self.audit = engine, dict(fixed), default, folder, audit
        self._changed, self._named, self._lock, self._state = changed, named, threading.Lock(), state
        self.current, self._older = resume(state.found if state else (), engine.pool.policies, texts or {})
        self.fault = ""
        """Why the present content of the folder is not in force; empty if it is."""
        self._seen = self._tried = self.current.texts
        self._save(self._older, self.current)
        if audit:
            audit.append("guard", engine.receipt())

    @property
    def num_older(self) -> int:
        """Number of revisions available for rollback."""
        return len(self._older)

    def put(self, name: str, text: bytes, by: str, *, revision: int | None = None) -> Revision:
        """Put a policy in force, replacing the one of this name if there is one, and write it to the folder.

        Args:
            name: Its name, and its file's.
            text: YAML.
            by: Who asks.
            revision: That which the change is meant for; without, whichever is current.

        Raises:
            PolicyError: The text is not valid, or there is no folder; nothing was changed.
            StaleError: Another change came first.
            SafeFluxError: Anything else that `PolicyPool.replace` or the log refuses; nothing was changed.
        """
        with self._changing(revision):
            self._check_free(name)
            return self._change("put", by, {**self.current.texts, file_of(name): text})

    def delete(self, name: str, by: str, *, revision: int | None = None) -> Revision:
        """Withdraw a policy, and remove its file. The errors are those of `put`."""
        with self._changing(revision):
            self._check_free(name)
            if file_of(name) not in self.current.texts:
                raise PolicyError(f"no policy {name!r} in the folder") from FileNotFoundError(name)
            if name == self.default:
                raise PolicyError(f"{name!r} is the default policy; replace it instead of deleting it")
            rest = {file: text for file, text in self.current.texts.items() if file != file_of(name)}
            return self._change("delete", by, rest)

    def roll_back(self, by: str, *, revision: int | None = None) -> Revision:
        """Go back to the policies before the last change. The errors are those of `put`."""
        with self._changing(revision):
            if not self._older:
                raise PolicyError("there is no earlier revision")
            *older, before = self._older
            return self._change("rollback", by, before.texts, older)

    def check(self, name: str, text: bytes) -> tuple[Policy, Plan]:
        """Check and plan what `put` would do, without changing anything. The errors are those of `put`."""
        policies = self._policies({**self.current.texts, file_of(name): text})
        plan = self.engine.pool.check(policies)[name]
        return policies[name], plan

    def try_out(
        self, name: str, text: bytes, wanted: list[PictureRequest], by: str
    ) -> tuple[list[tuple[Drawn, Drawn]], tuple[Policy, Plan]]:
        """Draw pictures before and after a change: under the policy of a name, and under a replacement for it.

        The replacement is in the pool meanwhile, where no request can reach it. A name that is not offered yet is
        compared with the default.

        Raises:
            SafeFluxError: The errors of `put`; what is offered is as it was.
        """
        with self._changing(None):
            policy, plan = self.check(name, text)
            before = name if name in self.current.policies else self.default
            trial = f"{name}{_NEXT}"
            now = self.current.policies
            self._note("asked", {"change": "preview", "by": by, "to": {name: policy.digest}})
            self.engine.pool.replace({**now, trial: policy})
            try:
                pairs = [(self.engine.draw(before, one), self.engine.draw(trial, one)) for one in wanted]
            finally:
                self.engine.pool.replace(now)
            return pairs, (policy, plan)

    def look(self) -> None:
        """Check the folder, and put its content in force once it has been stable for two checks."""
        if self.folder is None:
            return
        try:
            texts = self.folder.read()
            is_settled, self._seen = texts == self._seen, texts
            if texts == self.current.texts:
                self.fault, self._tried = "", texts
            elif is_settled and texts != self._tried:
                with self._changing(None):
                    if self.folder.read() != texts or texts == self.current.texts:
                        return  # another change was made while this one waited for its turn
                    self._tried = texts
                    self._change("reload", "folder", texts)
                self.fault = ""
        except SafeFluxError as error:
            if str(error) != self.fault:
                _log.warning("policies: what the folder has is not in force: %s", error)
            self.fault = str(error)

    @contextmanager
    def _changing(self, revision: int | None) -> Iterator[None]:
        if not self._lock.acquire(timeout=_WAIT):
            raise BusyError("another policy change is in progress; try again")
        try:
            if revision not in (None, self.current.number):
                raise StaleError(
                    f"the change is based on revision {revision}, but {self.current.number} is in force; reload first"
                )
            yield
        finally:
            self._lock.release()

    def _check_free(self, name: str) -> None:
        if self.folder is None:
            raise PolicyError("this service has no folder of policies: start it with --policies FOLDER")
        if name in self.fixed:
            raise PolicyError(f"{name!r} was given at the start and is fixed; choose another name")

    def _policies(self, texts: Texts) -> dict[str, Policy]:
        policies = join(self.fixed, policies_of(texts), self.default)
        if gone := sorted(set(self._named) - policies.keys()):
            raise PolicyError(f"a token names the policy {gone[0]!r}, so it cannot be removed; change the tokens first")
        return policies

    def _change(self, how: str, by: str, texts: Texts, older: Sequence[PastRevision] | None = None) -> Revision:
        """Put the policies of these texts in force; `older` are then those before them, by default the present too."""
        old, policies = self.current, self._policies(texts)
        made = Revision.after(old, policies, texts, by)
        older = tuple((*self._older, old) if older is None else older)[-KEPT:]
        facts = {"change": how, "by": by, "from": old.digests, "to": made.digests}
        try:
            self.engine.pool.check(policies)
            self._note("asked", facts)
            self.engine.pool.replace(policies)
            self._keep(how, made, older)
        except SafeFluxError as error:
            self._changed("refused")
            self._refuse(facts, error)
            raise
        self.current, self._older = made, older
        self._seen = self._tried = made.texts
        self._changed(how)
        return made

    def _keep(self, how: str, made: Revision, older: Sequence[PastRevision]) -> None:
        """Write what is in force now to the folder, the state and the log, or take it back."""
        with ExitStack() as undo:
            undo.callback(self.engine.pool.replace, self.current.policies)
            try:
                if self.folder and how != "reload":
                    self.folder.write(self.current.texts, made.texts)  # a write that fails leaves it as it was
                    undo.callback(self.folder.write, made.texts, self.current.texts)
                self._save(older, made)
                undo.callback(self._save, self._older, self.current)
                if self.audit:
                    self.audit.append(how, self.engine.receipt())
            except SafeFluxError as error:
                _take_back(undo.pop_all(), error)
            undo.pop_all()

    def _save(self, older: Sequence[PastRevision], current: Revision) -> None:
        if self._state:
            self._state.write((*older, current))

    def _note(self, action: str, facts: Mapping[str, Any]) -> None:
        if self.audit:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.audit.append(action, {"format": CHANGE, "time": now, **facts})

    def _refuse(self, facts: Mapping[str, Any], error: SafeFluxError) -> None:
        try:
            self._note("refused", {**facts, "reason": str(error)})
        except AuditError:  # the first error matters, and may be this one
            return


def _take_back(undo: ExitStack, error: SafeFluxError) -> NoReturn:
    try:
        undo.close()
    except SafeFluxError as second:
        raise ApplyError(
            f"{_sentence(error)} Taking the change back failed too ({second}): what is in force is not "
            "what was logged; restart the service"
        ) from second
    raise type(error)(f"{_sentence(error)} So the change was taken back: the old policies are in force.") from error


def _sentence(error: Exception) -> str:
    return str(error).removesuffix(".") + "."


def join(fixed: Mapping[str, Policy], found: Mapping[str, Policy], default: str | None) -> dict[str, Policy]:
    """All policies of a service, the default first.

    Raises:
        PolicyError: A name is taken twice, there is none at all, or the default is not among them.
    """
    if both := fixed.keys() & found.keys():
        raise PolicyError(f"the folder has a policy {min(both)!r}, and one of that name was given at the start")
    every = {**fixed, **found}
    if default not in every:
        if default is None:
            raise PolicyError("there is no policy to offer: give one by --policy, or put one into the folder")
        raise PolicyError(f"the default policy {default!r} is not among those of this service{suggest(default, every)}")
    return {default: every[default], **every}
