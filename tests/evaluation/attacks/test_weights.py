"""Attacks on weights: what is filled, trained, rounded and mixed, and what is left alone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from safeflux.evaluation.attacks.kinds.finetuning import BenignFineTune, train
from safeflux.evaluation.attacks.kinds.recovery import FillLowRank, FillMean, FillNoise, GradientSign
from safeflux.evaluation.attacks.kinds.rounding import Merge, Quantise
from safeflux.evaluation.attacks.kinds.weights import copied, fill_, hidden_of, row_means
from safeflux.evaluation.attacks.registry import all_attacks
from safeflux.evaluation.attacks.victim import random_like
from tests.evaluation.attacks.conftest import MUG, ONE

ROUNDED = [attack for attack in all_attacks().values() if isinstance(attack, Quantise)]


def changes(victim, transformer):
    """Parameter -> where it differs from the victim's."""
    now, then = dict(transformer.named_parameters()), dict(victim.pipe.transformer.named_parameters())
    return {name: (now[name] != then[name]) for name in then if not torch.equal(now[name], then[name])}


def test_hidden_elements_are_the_masked_ones(victim, some_masks):
    hidden = hidden_of(victim.pipe.transformer, some_masks)
    assert sum(int(where.sum()) for where in hidden.values()) == some_masks.count.masked
    weights = dict(victim.pipe.transformer.named_parameters())
    assert all((weights[name][where] == 0).all() for name, where in hidden.items())
    other = hidden_of(victim.pipe.transformer, random_like(some_masks, 1))
    assert {name: int(where.sum()) for name, where in other.items()} == {n: int(w.sum()) for n, w in hidden.items()}


def test_row_means_are_of_what_is_kept():
    weight = torch.tensor([[1.0, -3.0, 0.0], [0.0, 0.0, 5.0]])
    where = torch.tensor([[False, False, True], [True, True, False]])
    assert row_means(weight, where).tolist() == [[2, 2, 2], [5, 5, 5]]
    assert row_means(torch.tensor([2.0, 0.0]), torch.tensor([False, True])).tolist() == [2, 2]


@pytest.mark.parametrize("attack", [FillMean(), FillNoise(), FillLowRank()])
def test_only_hidden_elements_are_filled(victim, attack):
    (budget,) = attack.budgets("quick")
    hidden, changed = (
        hidden_of(victim.pipe.transformer, victim.masks),
        changes(victim, attack.change(victim, budget, ONE)),
    )
    assert changed
    assert all((where <= hidden[name]).all() for name, where in changed.items())


def test_a_low_rank_matrix_is_completed(victim):
    name, where = next(iter(hidden_of(victim.pipe.transformer, victim.masks).items()))
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(where.shape[0], 2, generator=rng) @ torch.randn(2, where.shape[1], generator=rng)
    with torch.no_grad():
        changed = victim.with_transformer(copied(victim))
        weight = dict(changed.pipe.transformer.named_parameters())[name]
        weight.copy_(true)
        weight[where] = 0
        got = dict(FillLowRank().change(changed, 2, ONE).named_parameters())[name]
    error, size = (got - true)[where].square().mean(), true[where].square().mean()
    assert error < 1e-3 * size


@pytest.mark.slow
def test_one_gradient_fills_every_hidden_element(victim):
    shots = list(GradientSign().run(victim, MUG, ONE))
    assert [shot.budget for shot in shots] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "frozen", "lora"])
def test_training_changes_what_it_may(victim, way, belongings):
    rng = np.random.default_rng(0)
    trained = train(victim, belongings[MUG.name], "a beer mug", way, budgets=(1, 2), rng=rng)
    steps = [(budget, copy.deepcopy(transformer)) for budget, transformer in trained]
    assert [budget for budget, _ in steps] == [1, 2]
    hidden = hidden_of(victim.pipe.transformer, victim.masks)
    for name, where in hidden.items():
        module = steps[1][1].get_submodule(name.rpartition(".")[0])
        is_zero = bool((module.weight[where] == 0).all())
        assert is_zero == (way == "frozen")
        assert not torch.equal(module.weight, victim.pipe.transformer.get_parameter(name))


@pytest.mark.slow
def test_harmless_training_is_done_once_for_all_things(victim):
    class Short(BenignFineTune):
        def budgets(self, level):
            return (1,)

    attack = Short()
    first, second = (next(iter(attack.run(victim, MUG, ONE))) for _ in range(2))
    assert len(attack._trained) == 1
    assert first.images[0].tobytes() == second.images[0].tobytes()


@pytest.mark.parametrize("attack", ROUNDED, ids=lambda attack: attack.name)
def test_rounding_is_near_and_leaves_zeros_zero(victim, attack):
    assert attack.refusal(victim.pipe) is None
    rounded = dict(attack.change(victim, 1, ONE).named_parameters())
    for name, where in hidden_of(victim.pipe.transformer, victim.masks).items():
        weight = dict(victim.pipe.transformer.named_parameters())[name]
        assert (rounded[name][where] == 0).all()
        error = (rounded[name] - weight).square().mean() / weight.square().mean()
        assert 0 < error < 0.02


def test_a_merge_has_its_share_of_the_base_model(victim):
    base = copied(victim)
    hidden = hidden_of(base, victim.masks)
    with torch.no_grad():
        fill_(base, hidden, lambda name, weight, where: torch.ones_like(weight))
    merged = dict(Merge().change(dataclasses.replace(victim, base=base), 10, ONE).named_parameters())
    for name, where in hidden.items():
        torch.testing.assert_close(merged[name][where], torch.full_like(merged[name][where], 0.1))
