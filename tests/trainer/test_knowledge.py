"""What is still known of a thing: single steps from noised pictures, and embeddings that try to bring it back."""

import copy

import numpy as np
import pytest
import torch
from safeflux.trainer.asked.config import TrainConfig, make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.bank import Bank
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.noised import noised
from safeflux.trainer.objective.objective import Objective
from safeflux.trainer.objective.prepare import ReferenceFile, prepare
from safeflux.trainer.processes import Processes

from safeflux.errors import ConfigError
from safeflux.families.sites import find_sites
from safeflux.reference.model import load_pipeline

NAMES = ("weapons", "alcohol")
SITES = ("single_transformer_blocks.1.attn.to_v:image", "transformer_blocks.1.attn.to_k:image")
ONLY = dict.fromkeys(("named", "own", "empty", "foreign", "bank"), 0.0)
STILL = {"bank_steps": 0, "bank_reset": 0}


def config_of(**settings) -> TrainConfig:
    options = embedded_options(NAMES)
    prompts = options["prompts"].model_copy(update={"erase_pairs": 12, "preserve_pairs": 24})
    return make_config({**options, "prompts": prompts, "batch": 6, "steps": 2, "spoilt_share": 0, **settings}, "test")


@pytest.fixture(scope="module")
def made() -> Objective:
    pipe = load_pipeline()
    sites = {name: site for name, site in find_sites(pipe.transformer).items() if name in SITES}
    assert len(sites) == len(SITES)
    return prepare(config_of(erase_terms={**ONLY, "own": 1}), pipe, Bits(sites), NAMES, torch.float32)


def test_pictures_of_things_are_kept_and_read_again_by_a_run_that_takes_them_alone(made, tmp_path):
    parts = (Bits(made._bits.sites), NAMES, torch.float32)
    pipe, drawn = load_pipeline(), []
    for terms, name in (({}, "words"), ({"erase_terms": {**ONLY, "own": 1}}, "things")):
        stored = ReferenceFile(tmp_path / name)
        first = prepare(config_of(**terms), pipe, *parts, stored=stored)
        again = prepare(config_of(**terms), pipe, *parts, stored=stored, drawn=lambda *step: drawn.append(step))
        assert not drawn
        for ours, theirs in zip((*first._erase, first._preserve), (*again._erase, again._preserve), strict=True):
            assert torch.equal(ours.target, theirs.target)
            assert torch.equal(ours.change, theirs.change)
            assert (ours.own is None) == (theirs.own is None) == (name == "words" and ours is not first._preserve)
            assert ours.own is None or torch.equal(ours.own, theirs.own)
        assert again._preserve.own is again._preserve.target
    assert not torch.equal(first._erase[0].own, first._erase[0].target)


@pytest.fixture
def objective_of(made):
    def build(**settings) -> Objective:
        parts = (made._transformer, made._sampler, made._bits, NAMES, made._erase, made._preserve)
        return Objective(config_of(**settings), *parts)

    return build


@pytest.fixture(scope="module")
def gates(made) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return 1 - 0.5 * torch.rand(len(NAMES), made._bits.count, generator=draw)


@pytest.mark.parametrize("term", ["own", "empty", "foreign", "bank"])
def test_gradients_of_every_term_are_those_of_differences(objective_of, gates, term):
    kept = {} if term == "bank" else {"preserve_terms": {**ONLY, term: 1}}
    objective = objective_of(erase_terms={**ONLY, term: 1}, noised={**STILL, "ceiling": 50}, **kept)
    asks = [lambda z: objective.erase(0, 0, 1, z)]
    asks += [lambda z: objective.preserve(0, 0, z)] if kept else []
    for ask in asks:
        slope = ask(gates)
        others = dict(slope.others(gates))
        gradient = torch.stack([slope.gradient * others.get(row, torch.zeros(())) for row in range(2)])
        step = 0.02 * gradient / gradient.norm()
        found = (ask(gates + step).loss - ask(gates - step).loss) / 2
        assert found == pytest.approx(float((gradient * step).sum()), rel=0.03)


def test_the_base_model_knows_all_of_its_pictures_and_spoils_none(objective_of, gates):
    objective = objective_of(erase_terms={**ONLY, "own": 1}, preserve_terms={**ONLY, "foreign": 1})
    assert objective.erase(0, 0, 0, torch.ones_like(gates)).loss == pytest.approx(1)
    assert objective.preserve(0, 0, torch.ones_like(gates)).loss == 0


def test_what_is_left_is_kept_for_each_term(objective_of, gates):
    objective = objective_of(erase_terms={**ONLY, "own": 1})
    objective.erase(0, 0, 0, gates)
    objective.settle(Processes())
    changed = (objective.hard[0].left != 1).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False]


def test_what_is_known_is_that_of_the_term_that_knows_most_over_the_last_batches(objective_of, gates):
    objective, shut = objective_of(erase_terms={**ONLY, "own": 1, "empty": 1}), torch.zeros_like(gates).bool()
    assert objective.known(0) == 1
    losses = []
    for batch in range(12):
        losses.append(objective.erase(0, batch, 0, shut).loss)
        objective.settle(Processes())
    assert max(losses) < 0.8
    assert objective.known(0) < 0.85
    assert objective.known(1) == 1  # not asked yet
    assert objective_of().known(0) == 0  # takes words alone


def test_a_batch_is_the_same_after_a_restart(objective_of, gates):
    terms = {**ONLY, "bank": 1}
    first, again = objective_of(erase_terms=terms), objective_of(erase_terms=terms)
    first.erase(0, 0, 0, gates)
    first.settle(Processes())
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    slopes = [objective.erase(1, 0, 0, gates) for objective in (first, again)]
    assert slopes[0].loss == slopes[1].loss
    assert torch.equal(slopes[0].gradient, slopes[1].gradient)
    assert objective_of(erase_terms=terms).erase(1, 0, 0, gates).loss != slopes[0].loss


def test_bits_that_are_opened_again_count_as_kept(objective_of, gates):
    shut = torch.zeros(gates.shape, dtype=torch.bool)
    losses = [
        objective_of(erase_terms={**ONLY, "own": 1}, noised={"reopened": share, "reopened_batches": 1})
        .erase(0, 0, 0, shut)
        .loss
        for share in (0, 0.5, 1)
    ]
    assert losses[2] == pytest.approx(1)
    assert losses[0] != losses[1] != losses[2]


def test_a_step_of_fine_tuning_on_other_pictures_brings_the_thing_back(objective_of, gates):
    masks = torch.rand(gates.shape, generator=torch.Generator().manual_seed(0)) < 0.97
    losses = [
        objective_of(erase_terms={**ONLY, "own": 1}, noised={"tuned": 1, "tuned_rate": rate}).erase(0, 0, 0, masks).loss
        for rate in (1e-6, 0.003, 0.01)
    ]
    assert losses[0] < losses[1] < losses[2]


def test_a_run_that_keeps_no_pictures_has_nothing_to_tune_on():
    with pytest.raises(ConfigError, match=r"noised.tuned: expected 0, since erase_terms has `named` alone"):
        config_of(noised={"tuned": 0.5})


def test_the_bank_brings_more_back_with_each_attack_and_moves_only_what_it_used(made):
    config, pool = config_of().noised.model_copy(update={"bank_reset": 0}), made._erase[1]
    bank, rng, indices = Bank(made._erase, made._preserve, config, 7), np.random.default_rng(0), list(range(6))
    rows, own = bank.rows(1, pool, indices, rng), pool.condition(indices)
    sample = noised(pool, indices, config, rng, torch.device("cpu"))

    def error(condition):
        return sample.error(sample.velocity(made._transformer, made._sampler, condition))

    before = [part.clone() for part in bank.state_dict()]
    errors = [error(bank.condition(rows, own)).mean().item()]
    for _ in range(2):
        bank.attack(rows, own, lambda condition: error(condition).log().sum())
        errors.append(error(bank.condition(rows, own)).mean().item())
    assert errors[0] > errors[1] > errors[2]
    for old, new in zip(before, bank.state_dict(), strict=True):
        moved = (old != new).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert moved == sorted(set(rows))
    again = Bank(made._erase, made._preserve, config, 8)
    again.load_state_dict(bank.state_dict())
    assert torch.equal(again.condition(rows, own).tokens, bank.condition(rows, own).tokens)


def test_each_concept_has_embeddings_of_its_own_some_of_which_start_anew(made):
    config = config_of().noised.model_copy(update={"bank_reset": 1.0})
    bank, rng = Bank(made._erase, made._preserve, config, 7), np.random.default_rng(0)
    pool, before = made._erase[0], bank.state_dict()[0].clone()
    rows = bank.rows(0, pool, list(range(12)), rng)
    concepts = {row // config.bank_size: pool.pairs[k].concept for k, row in enumerate(rows)}
    assert len(set(concepts.values())) == len(concepts)
    moved = {int(k) for k in (before != bank.state_dict()[0]).flatten(1).any(dim=1).nonzero()}
    assert moved <= set(rows)
    assert len(moved) > len(set(rows)) / 2  # one may draw the prompt that it has


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"erase_terms": ONLY}, "expected a term with a weight above 0"),
        ({"preserve_terms": {"bank": 1}}, "adversarial embeddings serve erasure alone"),
        ({"noised": {"ceiling": 1}}, "greater than 1"),
    ],
)
def test_terms_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**settings)
