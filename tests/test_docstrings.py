"""The examples in docstrings are run, in every module that has one."""

import doctest
import importlib
import pkgutil

import pytest
import safeflux.trainer

import safeflux

MODULES = [
    module.name
    for package in (safeflux, safeflux.trainer)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
WITH_EXAMPLES = {
    "safeflux.codes",
    "safeflux.detectors",
    "safeflux.elements",
    "safeflux.floats",
    "safeflux.layout",
    "safeflux.masks",
    "safeflux.policydiff",
    "safeflux.reference.measure",
    "safeflux.reference.vocabulary",
    "safeflux.removal",
    "safeflux.sites",
    "safeflux.trainer.estimates",
    "safeflux.trainer.hard",
    "safeflux.trainer.metrics",
    "safeflux.trainer.templates",
    "safeflux.trainer.validation",
}


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_the_examples_are_true(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert (results.attempted > 0) == (name in WITH_EXAMPLES)
