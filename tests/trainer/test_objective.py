"""One backward pass for the masks of a whole subset: against plain autograd through the product of the gates."""

from contextlib import contextmanager

import pytest
import torch
from safeflux.trainer.asked.config import TrainConfig, make_config
from safeflux.trainer.asked.many import ManyConfig
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.batches import draw_subset
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.losses import distance, erase_loss, standing_out
from safeflux.trainer.objective.objective import Objective
from safeflux.trainer.objective.prepare import prepare
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import rollout

from safeflux.families.sites import find_sites
from safeflux.reference.model import load_pipeline
from tests.helpers.factors import masked_parameters

NAMES = ("weapons", "alcohol", "tobacco")


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    options = embedded_options(NAMES)
    prompts = options["prompts"].model_copy(update={"erase_pairs": 8, "preserve_pairs": 40, "category_share": 0.5})
    return make_config({**options, "prompts": prompts, "batch": 3, "steps": 2}, "test")


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.transformer.requires_grad_(False)
    return pipe


@pytest.fixture(scope="module")
def objective(config, pipe) -> Objective:
    sites = {name: site for name, site in find_sites(pipe.transformer).items() if "context_embedder" in name}
    return prepare(config, pipe, Bits(sites), NAMES, torch.float32)  # which every processor multiplies fast


@pytest.fixture(scope="module")
def gates(objective) -> torch.Tensor:
    return torch.rand(len(NAMES), objective._bits.count, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def relative(config, pipe, objective) -> Objective:
    chosen = config.model_copy(update={"preserve_loss": "relative"})
    return prepare(chosen, pipe, objective._bits, NAMES, torch.float32)


@pytest.mark.parametrize(
    ("asks", "question"), [("objective", "erase"), ("objective", "preserve"), ("relative", "preserve")]
)
def test_gradients_of_a_subset_are_those_of_plain_autograd(asks, gates, question, request):
    objective = request.getfixturevalue(asks)
    for batch in range(4):
        slope = objective.erase(0, batch, 1, gates) if question == "erase" else objective.preserve(0, batch, gates)
        loss, gradient = _plain(objective, gates, question, batch, slope.subset)
        assert slope.loss == pytest.approx(loss, rel=1e-5)
        for row in range(len(NAMES)):
            if row in slope.subset:
                found = slope.gradient * dict(slope.others(gates))[row]
                assert (found - gradient[row]).norm() <= 1e-4 * gradient[row].norm()
            else:
                assert not gradient[row].any()


def _plain(objective, gates, question, batch, subset):
    """The same pairs, the gates multiplied inside the graph."""
    stream = (question, 0, batch, 1) if question == "erase" else (question, 0, batch)
    rng = objective._rng(*stream)
    must = 1 if question == "erase" else int(rng.choice(len(gates), p=[1 / 3] * 3))
    assert draw_subset(rng, must, len(gates)) == subset
    if question == "preserve":
        rng.integers(2**62)
    pool = objective._erase[1] if question == "erase" else objective._preserve
    weight = torch.ones(len(pool.pairs))  # no pair was seen yet
    indices = pool.draw(rng, objective._config.batch, frozenset(NAMES[k] for k in subset), weight)
    z = gates.clone().requires_grad_()
    parts = objective._bits.split(torch.stack([z[k] for k in subset]).prod(dim=0))
    parameters = masked_parameters(objective._transformer, objective._bits.sites, parts)
    with fast_math(z.device, torch.float32), _stand_ins(objective._transformer, parameters):
        output = rollout(
            objective._transformer, objective._sampler, pool.noise[indices], pool.condition(indices), recompute="none"
        )
        target = pool.target[indices]
        losses = erase_loss(output, target, pool.change[indices]) if question == "erase" else distance(output, target)
        if objective._config.preserve_loss == "relative":
            losses = losses / standing_out(pool.target)[indices]
        loss = losses.mean()
        (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


@pytest.mark.parametrize("preserve_loss", ["absolute", "relative"])
def test_parts_of_a_batch_are_batches_of_their_own(config, pipe, objective, preserve_loss):
    """The same pairs under the same masks, in one forward and one backward pass instead of five."""
    gates = torch.rand(len(NAMES), objective._bits.count, generator=torch.Generator().manual_seed(1)) > 0.2
    small = config.model_copy(update={"batch": 2, "preserve_loss": preserve_loss})
    large = small.model_copy(update={"batch": 6, "many": ManyConfig(parts=3)})
    asked = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    found = []
    for chosen in (small, large):
        made = prepare(chosen, pipe, objective._bits, NAMES, torch.float32)
        found.append([*made.erase_each(0, asked, gates), *made.preserve_each(0, range(5), gates)])
    for alone, part in zip(*found, strict=True):
        assert part.subset == alone.subset
        assert part.loss == pytest.approx(alone.loss, rel=1e-4)
        assert (part.gradient - alone.gradient).norm() <= 1e-4 * alone.gradient.norm()
        if alone.projection is not None:
            assert (part.projection - alone.projection).norm() <= 1e-4 * alone.projection.norm()
    assert len({slope.subset for slope in found[1]}) > 2


@contextmanager
def _stand_ins(transformer, parameters):
    """The transformer with tensors of a graph in the place of its own parameters."""
    own = {name: transformer.get_parameter(name) for name in parameters}
    layers = {name: (transformer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in own}
    for name, (layer, leaf) in layers.items():
        del layer._parameters[leaf]
        setattr(layer, leaf, parameters[name])
    yield
    for name, (layer, leaf) in layers.items():
        delattr(layer, leaf)
        layer.register_parameter(leaf, own[name])


def test_the_price_of_a_bit_is_relative_too(relative, objective, gates):
    """Each picture's projection is scaled by the root of what its loss is scaled by, as the curvature is."""
    drawn, scale = relative._draw_preserve(0, 0, 3), standing_out(relative._preserve.target)
    assert scale.mean() == pytest.approx(1, abs=0.2)
    assert scale.max() > 1.5 * scale.min()
    output = relative._preserve.target[drawn.indices]
    for k, index in enumerate(drawn.indices):
        one = torch.zeros_like(output).index_copy_(0, torch.tensor([k]), output[k : k + 1])
        signs = drawn.signs.get_state()
        ours = relative._projected(drawn, one)
        drawn.signs.set_state(signs)
        theirs = objective._projected(drawn, one)
        drawn.signs.set_state(signs)
        assert (ours / theirs).square() == pytest.approx(1 / float(scale[index]), rel=1e-4)


def test_a_batch_is_the_same_whenever_it_is_asked_for(objective, gates):
    first, again, other = (objective.erase(round_, 0, 0, gates) for round_ in (3, 3, 4))
    assert (first.loss, first.subset) == (again.loss, again.subset)
    assert torch.equal(first.gradient, again.gradient)
    assert first.loss != other.loss


def test_nothing_erased_is_one_for_every_pair_and_what_is_left_steers_the_next_draws(objective, gates):
    objective.erase(5, 0, 2, torch.ones_like(gates))
    objective.settle(Processes())
    seen = objective.hard[2].left[0] != 1
    assert torch.allclose(objective.hard[2].left[0], torch.ones(8), atol=1e-4)  # batches of other sizes are rounded
    assert int(seen.sum()) <= objective._config.batch
    pool, left = objective._erase[2], torch.zeros(8)
    left[3] = 1.0
    rng = objective._rng("erase", 1)
    assert {k for _ in range(20) for k in pool.draw(rng, 1, weight=left)} == {3}
    assert sorted(pool.draw(rng, 8, weight=left)) == list(range(8))  # none is ever shut out


def test_the_reported_loss_is_that_of_pairs_drawn_uniformly(objective):
    """Drawn by what was left, a batch looks worse the better the others are erased."""
    gates = torch.ones(len(NAMES), objective._bits.count)
    gates[0, ::2] = 0.5
    objective.hard[0].left = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0]])
    losses = [objective.erase(7, k, 0, gates).loss for k in range(60)]
    drawn = [left for category, _, _, lefts in objective._seen if category == 0 for left in lefts]
    objective.settle(Processes())
    alike = float(objective.hard[0].left.mean())
    assert abs(sum(losses) / len(losses) - alike) < 0.5 * abs(sum(drawn) / len(drawn) - alike)


def test_what_was_spoilt_is_drawn_again_under_the_masks_that_spoilt_it(objective):
    objective.settle(Processes())
    objective.spoilt.left[:] = torch.nan  # what tests before this one saw under gates of theirs
    gates = torch.ones(len(NAMES), objective._bits.count)
    gates[1] = 0.0
    slopes = [objective.preserve(8, k, gates) for k in range(24)]
    objective.settle(Processes())
    alone = {slope.subset[0]: slope.loss for slope in slopes if len(slope.subset) == 1}
    assert alone[1] > 100 * max(alone[0], alone[2])
    again = [objective.preserve(9, k, gates).subset for k in range(24)]
    assert again.count((1,)) > 2 * again.count((0,))
    left = objective.spoilt.left
    assert left[1].nanmean() > 100 * left[0].nanmean()
    worst = left[1].nan_to_num(0).argmax()
    weights = objective.spoilt.weights(1, 0.7)
    assert weights.argmax() == worst
    assert weights.min() >= 0.3  # none is ever shut out
    objective.spoilt.left[:] = torch.nan


def test_a_mask_is_asked_alone_with_all_and_with_some(objective, gates):
    subsets = {draw_subset(objective._rng("erase", k), 1, len(NAMES)) for k in range(60)}
    assert all(1 in subset for subset in subsets)
    assert {(1,), (1, 0, 2), (1, 0), (1, 2)} == subsets
    assert {draw_subset(objective._rng("erase", k), 1, len(NAMES), alone=1) for k in range(60)} == {(1,)}


def test_batches_to_erase_and_to_preserve_have_shares_alone_of_their_own(config, pipe, objective, gates):
    prompts = config.prompts.model_copy(update={"erase_pairs": 2, "preserve_pairs": 2})
    many = ManyConfig(alone=0, preserve_alone=1)
    few = config.model_copy(update={"prompts": prompts, "batch": 2, "steps": 1, "many": many})
    made = prepare(few, pipe, objective._bits, NAMES, torch.float32)
    assert max(len(made.erase(0, batch, 1, gates).subset) for batch in range(3)) > 1
    assert {len(made.preserve(0, batch, gates).subset) for batch in range(3)} == {1}


def test_what_a_mask_of_the_subset_erases_is_not_to_be_preserved(objective):
    rng = objective._rng("preserve", 9)
    for masked in ({"weapons"}, {"alcohol", "tobacco"}, set(NAMES)):
        drawn = objective._preserve.draw(rng, 200, frozenset(masked))
        categories = {c for k in drawn for c in objective._preserve.pairs[k].categories}
        assert not categories & masked
        assert categories  # things of other categories stay to be preserved


def test_the_masks_that_nothing_was_switched_off_in_cost_nothing(objective, gates):
    assert objective.preserve(0, 0, torch.ones_like(gates)).loss < 1e-9  # rounding alone


def test_products_run_in_the_dtype_that_the_objective_is_given(config, pipe, objective):
    prompts = config.prompts.model_copy(update={"erase_pairs": 2, "preserve_pairs": 2})
    few = config.model_copy(update={"prompts": prompts, "batch": 2, "steps": 1})
    gates = torch.full((len(NAMES), objective._bits.count), 0.5)
    exact, rounded = (
        prepare(few, pipe, objective._bits, NAMES, dtype).preserve(0, 0, gates)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert rounded.loss != exact.loss
    difference = (rounded.gradient - exact.gradient).norm()
    assert 1e-4 * exact.gradient.norm() < difference < 0.2 * exact.gradient.norm()
