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
    "safeflux.checkpoints.zero_codes",
    "safeflux.convert.tensor_plan",
    "safeflux.disk.hub",
    "safeflux.detectors.labels",
    "safeflux.detectors.preprocessing",
    "safeflux.evaluation.fidelity",
    "safeflux.detectors.calibration",
    "safeflux.model.index_sets",
    "safeflux.model.pool.layers",
    "safeflux.model.writes",
    "safeflux.checkpoints.number_formats",
    "safeflux.checkpoints.layout",
    "safeflux.disk.canonical",
    "safeflux.policy.validate",
    "safeflux.policy.values",
    "safeflux.profiles.call",
    "safeflux.masks.mask_set",
    "safeflux.policy.claims",
    "safeflux.policy.characters",
    "safeflux.policy.starter",
    "safeflux.policy.diff",
    "safeflux.rates",
    "safeflux.reference.vocabulary",
    "safeflux.evidence.envelope",
    "safeflux.masks.cuts",
    "safeflux.families.sites",
    "safeflux.trainer.methods.estimates",
    "safeflux.trainer.objective.batches",
    "safeflux.trainer.objective.hardness",
    "safeflux.trainer.objective.losses",
    "safeflux.trainer.objective.noised",
    "safeflux.trainer.objective.vectors",
    "safeflux.evaluation.metrics",
    "safeflux.packs.templates",
    "safeflux.pages.pairs",
    "safeflux.packs.neutral",
    "safeflux.trainer.run.blind",
    "safeflux.trainer.run.validation",
}


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_the_examples_are_true(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert (results.attempted > 0) == (name in WITH_EXAMPLES)
