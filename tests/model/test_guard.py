"""The guard on real small models: what it writes, what it tells, and how it is taken back."""

import copy
import logging
import pickle
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from safeflux.errors import ApplyError, MaskMismatchError, ModelError, PolicyError, StoreError
from safeflux.masks.mask_set import compose
from safeflux.model.apply import apply_masks_
from safeflux.model.guard import guard
from safeflux.plan.status import State
from safeflux.policy.load import Action, Budget, Category, Policy
from tests.helpers.models import WEIGHTS
from tests.helpers.policies import BLADES, BOTH, SPIRITS


def draw(pipe):
    """A picture from fixed embeddings and noise."""
    seed = torch.Generator().manual_seed(1)
    return pipe(
        prompt_embeds=torch.randn(1, 3, 24, generator=seed),
        pooled_prompt_embeds=torch.randn(1, 20, generator=seed),
        height=16,
        width=16,
        num_inference_steps=2,
        generator=seed,
        output_type="pt",
    ).images


def test_guard_is_the_and_of_the_masks_in_the_weights(transformer, store, make_masks, bits_of):
    by_hand = copy.deepcopy(transformer)
    apply_masks_(by_hand, compose(make_masks(1, WEIGHTS, 0.02), make_masks(2, ("ff", "mlp", "norm"))))
    handle = guard(transformer, BOTH, store=store)
    assert bits_of(transformer) == bits_of(by_hand)
    assert handle.verify().state is State.GUARDED
    assert handle.verify().ok


def test_a_pipeline_draws_other_pictures_while_guarded_and_the_same_after(pipe, store):
    before = draw(pipe)
    with guard(pipe, BOTH, store=store) as handle:
        assert not torch.equal(draw(pipe), before)
        assert handle.verify().ok
    assert torch.equal(draw(pipe), before)
    assert handle.verify().state is State.UNGUARDED


def test_no_hook_or_wrapper_stays_and_undo_leaves_no_trace(pipe, store, bits_of):
    transformer = pipe.transformer
    before, attributes = bits_of(transformer), [set(vars(m)) for m in transformer.modules()]
    identity = {name: (id(p), p.data_ptr(), p.dtype) for name, p in transformer.named_parameters()}
    handle = guard(pipe, BOTH, store=store)
    assert pipe.transformer is transformer
    assert {name: (id(p), p.data_ptr(), p.dtype) for name, p in transformer.named_parameters()} == identity
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in transformer.modules())
    assert [set(vars(m)) for m in transformer.modules()][1:] == attributes[1:]
    assert set(vars(transformer)) - attributes[0] == {"_safeflux"}
    handle.undo()
    assert bits_of(transformer) == before
    assert [set(vars(m)) for m in transformer.modules()] == attributes
    handle.undo()
    assert bits_of(transformer) == before


def test_dry_run_writes_nothing(transformer, store, bits_of):
    before = bits_of(transformer)
    handle = guard(transformer, BOTH, store=store, dry_run=True)
    assert handle.verify().state is State.UNGUARDED
    assert not handle.verify().ok
    assert handle.plan.masks.count.masked > 0
    assert all(bits.in_force == 0 for bits in handle.status.sites.values())
    handle.undo()
    assert bits_of(transformer) == before
    assert "_safeflux" not in vars(transformer)


def test_guarding_again_with_the_same_policy_changes_nothing(transformer, store, bits_of):
    before = bits_of(transformer)
    first = guard(transformer, BOTH, store=store)
    guarded = bits_of(transformer)
    versions = [p._version for p in transformer.parameters()]
    second = guard(transformer, BOTH, store=store)
    assert [p._version for p in transformer.parameters()] == versions
    assert second.verify().ok
    second.undo()
    assert bits_of(transformer) == before != guarded
    assert first.verify().state is State.UNGUARDED


def test_leaving_an_inner_guard_of_the_same_policy_leaves_the_outer_one(transformer, store):
    outer = guard(transformer, BOTH, store=store)
    with guard(transformer, BOTH, store=store) as inner:
        assert inner.verify().ok
    assert outer.verify().ok


def test_a_second_policy_composes_and_guards_are_undone_last_first(transformer, store, bits_of):
    together = copy.deepcopy(transformer)
    guard(together, BOTH, store=store)
    start = bits_of(transformer)
    first = guard(transformer, BLADES, store=store)
    middle = bits_of(transformer)
    second = guard(transformer, SPIRITS, store=store)
    assert bits_of(transformer) == bits_of(together)
    assert first.verify().ok
    assert second.verify().ok
    with pytest.raises(ApplyError, match=r"'spirits-only' was put on top of 'blades-only'; undo 'spirits-only' first"):
        first.undo()
    assert bits_of(transformer) == bits_of(together)
    second.undo()
    assert bits_of(transformer) == middle
    assert first.verify().ok
    first.undo()
    assert bits_of(transformer) == start


def test_a_swap_puts_another_policy_in_force_on_the_same_handle(transformer, store, bits_of):
    before = bits_of(transformer)
    with guard(transformer, SPIRITS, store=store):
        spirits = bits_of(transformer)
    handle, again = guard(transformer, BOTH, store=store), guard(transformer, BOTH, store=store)
    handle.swap(SPIRITS, store=store)
    assert bits_of(transformer) == spirits
    assert handle.plan.policy is again.plan.policy is SPIRITS
    assert handle.verify().ok
    assert again.verify(deep=True).ok
    assert handle.status.categories.keys() == {"alcohol"}
    assert handle.receipt()["policy"]["name"] == "spirits-only"
    handle.undo()
    assert bits_of(transformer) == before


def test_a_swap_that_cannot_be_done_leaves_the_old_policy(transformer, store, bits_of):
    handle = guard(transformer, BLADES, store=store)
    masked = bits_of(transformer)
    small = Policy(name="small", categories=SPIRITS.categories, budget=Budget(max_share_masked=1e-6))
    nothing = Policy(name="nothing", categories={"alcohol": Category(action=Action.AUDIT, masks=("spirits",))})
    missing = Policy(name="missing", categories={"alcohol": Category(masks=("gin",))})
    for policy, error in ((small, PolicyError), (nothing, PolicyError), (missing, StoreError)):
        with pytest.raises(error):
            handle.swap(policy, store=store)
        assert bits_of(transformer) == masked
        assert handle.plan.policy is BLADES
        assert handle.verify(deep=True).ok
    top = guard(transformer, SPIRITS, store=store)
    with pytest.raises(ApplyError, match="undo 'spirits-only' first"):
        handle.swap(BOTH, store=store)
    top.undo()
    handle.undo()
    for idle in (handle, guard(transformer, BLADES, store=store, dry_run=True)):
        with pytest.raises(ApplyError, match="nothing to swap"):
            idle.swap(SPIRITS, store=store)


def test_the_budget_of_the_first_policy_binds_the_second(transformer, store):
    tight = Policy(name="tight", budget=Budget(max_share_masked=0.05), categories=BLADES.categories)
    handle = guard(transformer, tight, store=store)
    with pytest.raises(PolicyError, match=r"'tight': budget.max_share_masked is 0.05"):
        guard(transformer, SPIRITS, store=store)
    assert handle.verify().ok


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (
            Policy(name="p", categories={"w": Category(masks=("nothing",))}),
            StoreError,
            "category 'w'.*'nothing' is not in",
        ),
        (
            Policy(name="p", categories={"weapons": Category(masks=("blades",), action=Action.AUDIT)}),
            PolicyError,
            "enforces no",
        ),
        (Policy(name="p", categories=SPIRITS.categories, budget=Budget(max_share_masked=0.01)), PolicyError, "budget"),
        ("no-such-policy", PolicyError, "no-such-policy"),
    ],
    ids=["unknown mask", "nothing enforced", "over budget", "unknown policy"],
)
def test_it_fails_closed_before_any_write(transformer, store, bits_of, policy, error, message):
    before = bits_of(transformer)
    with pytest.raises(error, match=message):
        guard(transformer, policy, store=store)
    assert bits_of(transformer) == before
    assert "_safeflux" not in vars(transformer)


def test_models_that_do_not_fit_are_refused(other_transformer, pipe, store):
    with pytest.raises(MaskMismatchError, match="other base weights"):
        guard(other_transformer, BLADES, store=store)
    with pytest.raises(ModelError, match="not a FLUX model"):
        guard(pipe.vae, BLADES, store=store)
    with pytest.raises(ModelError, match="expected a FLUX pipeline"):
        guard("FLUX.1-dev", BLADES, store=store)


@pytest.mark.filterwarnings("ignore:There are modules")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_is_the_same_base_before_and_stays_guarded_after(transformer, store, dtype):
    cast = copy.deepcopy(transformer).to(dtype)
    assert guard(cast, BOTH, store=store).verify().ok
    handle = guard(transformer, BOTH, store=store)
    transformer.to(dtype)
    assert handle.verify().ok
    assert guard(transformer, SPIRITS, store=store).verify().ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside torch
def test_a_guarded_model_is_the_same_graph_and_costs_the_same_operations(transformer, inputs, store):
    def cost():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            transformer(**inputs)
        return counter.get_total_flops()

    def graph():
        return torch.export.export(transformer, (), dict(inputs)).graph_module.code

    before = cost(), graph()
    assert before[0] > 0
    guard(transformer, BOTH, store=store)
    assert (cost(), graph()) == before


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_guarded_by_itself(transformer, store, bits_of, clone):
    before = bits_of(transformer)
    original = guard(transformer, BOTH, store=store)
    twin = clone(transformer)
    handle = guard(twin, BOTH, store=store)
    assert handle.verify().ok
    handle.undo()
    assert bits_of(twin) == before
    assert original.verify().ok


def test_saved_weights_are_guarded_weights(transformer, store, tmp_path, bits_of):
    guard(transformer, BOTH, store=store)
    transformer.save_pretrained(tmp_path / "saved")
    loaded = type(transformer).from_pretrained(tmp_path / "saved")
    assert bits_of(loaded) == bits_of(transformer)


def test_warn_is_said_and_audit_is_silent(transformer, store, caplog):
    categories = BLADES.categories | {"alcohol": Category(masks=("spirits",), action=Action.WARN)}
    with caplog.at_level(logging.WARNING, logger="safeflux"):
        guard(transformer, Policy(name="p", categories=categories), store=store)
    assert "category 'alcohol' is on `warn`" in caplog.text


def test_guarding_a_small_model_takes_milliseconds(transformer, store):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        handle = guard(transformer, BOTH, store=store)
        seconds.append(time.perf_counter() - start)
        handle.undo()
    print(f"guard: {1000 * min(seconds):.1f} ms")
    assert min(seconds) < 0.5
