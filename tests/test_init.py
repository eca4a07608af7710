"""The face of the package: lazy names that are what they say."""

import importlib

import pytest

import safeflux


def test_every_public_name_resolves():
    for name in safeflux.__all__:
        assert getattr(safeflux, name).__name__ == name
    assert set(safeflux.__all__) <= set(dir(safeflux))


def test_guard_stays_the_function_after_its_module_was_imported():
    module = importlib.import_module("safeflux.guard")
    assert safeflux.guard is module.guard
    assert callable(safeflux.guard)


def test_submodules_are_still_reachable():
    import safeflux.masks

    assert safeflux.masks.compose is safeflux.compose


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'safeflux' has no attribute 'gaurd'"):
        safeflux.gaurd  # noqa: B018
