"""The parts of a pipeline beside its transformer: text encoders, tokenizers, scheduler and VAE make its pictures too.

They hold no masks. But an adapter of a text encoder, an embedding that was learned, or another part can bring back a
concept that the transformer does not draw for its own words. So each part is noted when the transformer is guarded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from safeflux.errors import ModelError
from safeflux.model.adapters import Admitted, check_adapters
from safeflux.model.watch.attributes import Classes, Contents
from safeflux.model.watch.called import called_by
from safeflux.model.watch.forward import Makers, strangers
from safeflux.model.watch.known import foreign_methods, is_known, name_of
from safeflux.model.watch.sample import Sample
from safeflux.model.watch.settings import Code, Settings, differences
from safeflux.model.watch.snapshot import Snapshot
from safeflux.model.watch.weightless import Calls, attributes_of, own_calls, part_names, settings_of
from safeflux.policy.load import Adapters, Policy


@dataclass(frozen=True)
class _Module:
    """A text encoder, a VAE: what it draws with."""

    sample: Sample
    strangers: frozenset[str]
    settings: Settings


def check_parts(policy: Policy, model: Any, admitted: Admitted) -> None:
    """Make sure that no part of a pipeline beside its transformer carries an adapter that the policy forbids.

    Raises:
        ModelError: One does.
    """
    for name in part_names(model):
        part = getattr(model, name, None)
        if isinstance(part, torch.nn.Module):
            try:
                check_adapters(policy, part, admitted, part=name)
            except ModelError as error:
                raise ModelError(f"the pipeline's {name}: {error}") from error


class Rest:
    """What a pipeline has beside its transformer, as it was when this was made; nothing where there is no pipeline."""

    def __init__(self, model: Any) -> None:
        """Note every part of a pipeline; of a transformer alone, nothing.

        Args:
            model: A pipeline of diffusers, or its transformer.
        """
        self._model = model
        self._names = part_names(model)
        self._then = {name: part for name in self._names if (part := getattr(model, name)) is not None}
        self._modules = {
            name: _Module(Sample(part), frozenset(strangers(makers := Makers(part))), Settings(makers))
            for name, part in self._then.items()
            if isinstance(part, torch.nn.Module)
        }
        self._settings = {name: settings_of(part) for name, part in self._then.items()}
        self._own_calls = self._seen_calls = own_calls(model)
        self._foreign = set(self._foreign_methods())
        self._attributes = attributes_of(model)
        self._code = Code()
        self._code.add(called_by((), list(self._kinds())))
        self._seen: list[tuple[str, Any, Snapshot | None]] | None = None
        self._seen_classes = self._classes()

    @property
    def names(self) -> list[str]:
        """The parts that are watched, sorted."""
        return sorted(self._then)

    def is_unchanged(self) -> bool:
        """Whether no part moved since it was last read and found to be as it was."""
        if self._seen is None:
            return not self._names
        return (
            own_calls(self._model) == self._seen_calls
            and self._seen_classes.are_unchanged()
            and all(
                getattr(self._model, name, None) is part and (snapshot is None or snapshot.is_unchanged())
                for name, part, snapshot in self._seen
            )
        )

    def faults(self, policy: Policy, admitted: Admitted) -> tuple[list[str], list[str]]:
        """Read all parts.

        Args:
            policy: Where it lets any adapter in, other parts may come too.
            admitted: What adapters of listed files are recognised by.

        Returns:
            What breaks the policy, and what cannot be determined.
        """
        if policy.adapters is Adapters.ALLOW:
            return [], []
        now = {name: getattr(self._model, name, None) for name in self._names}
        seen = [
            (name, part, Snapshot(part) if isinstance(part, torch.nn.Module) else None) for name, part in now.items()
        ]
        broken: list[str] = []
        unknown: list[str] = []
        calls, classes = own_calls(self._model), self._classes()
        if self._names and not _draw_alike(self._own_calls, calls):
            unknown.append("the pipeline's class, its call, or a method of its own, is another one than at the guard")
        patched = dict.fromkeys(each for each in self._foreign_methods() if each not in self._foreign)
        unknown.extend(f"{each} is not known here, and was not there at the guard" for each in patched)
        unknown.extend(differences("the pipeline", self._attributes, attributes_of(self._model)))
        unknown.extend(self._code.differences())
        for name, part in now.items():
            if part is not None:
                self._look(name, part, policy, admitted, broken, unknown)
        self._seen, self._seen_calls = None if broken or unknown else seen, calls
        self._seen_classes = classes
        return [f"{each}, and policy {policy.name!r} says `adapters: {policy.adapters}`" for each in broken], unknown

    def _foreign_methods(self) -> Iterator[str]:
        """Name what the classes of the pipeline, and of its parts that are no modules, do that is not known code."""
        for base in self._bases():
            yield from (f"{name_of(base)}.{method}" for method in foreign_methods(base))

    def _classes(self) -> Contents:
        return Contents(Classes(self._bases()).dicts)

    def _bases(self) -> list[type]:
        """All that the classes of the pipeline, and of its parts that are no modules, inherit."""
        return list(dict.fromkeys(base for kind in self._kinds() for base in kind.__mro__ if base is not object))

    def _kinds(self) -> dict[type, None]:
        """The classes of the pipeline and of its parts that are no modules."""
        parts = [self._model, *(getattr(self._model, name, None) for name in self._names)] if self._names else []
        return dict.fromkeys(type(part) for part in parts if not isinstance(part, torch.nn.Module | None))

    def _look(
        self, name: str, part: Any, policy: Policy, admitted: Admitted, broken: list[str], unknown: list[str]
    ) -> None:
        if settings_of(part) != self._settings.get(name):
            broken.append(f"the pipeline's {name} is another one than at the guard, or has other settings or tokens")
            return
        noted = self._modules.get(name)
        if noted is None:
            return
        try:
            check_adapters(policy, part, admitted, part=name)
        except ModelError as error:
            broken.append(f"the pipeline's {name}: {error}")
        found = noted.sample.compare(part, rounded=policy.adapters is Adapters.ALLOWLIST)
        if found.changed:
            broken.append(f"weights of the pipeline's {name} have changed since the guard: {found.changed_names}")
        if found.unreadable:
            unknown.append(f"weights of the pipeline's {name} cannot be read: {found.unreadable_names}")
        makers = Makers(part)
        strange = [each for each in strangers(makers) if each not in noted.strangers]
        strange += [*noted.settings.other_parts(makers), *noted.settings.other_functions()]
        unknown.extend(f"{name}: {each}" for each in strange)
        if not strange:
            noted.settings.add(makers)


def _draw_alike(then: Calls, now: Calls) -> bool:
    """Whether a pipeline is called as it was; known code may have come around the call of its class, as caches do."""
    kind, call, own = now
    return (kind, own) == (then[0], then[2]) and (call == then[1] or is_known(call, ()))
