"""Several policies on one model: what a switch writes, what it refuses, and what is said of it."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from safeflux.errors import ApplyError, MaskMismatchError, PolicyError, StoreError
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.pool.pool import PolicyPool
from safeflux.model.record import record_of
from safeflux.model.weights import fingerprint
from safeflux.model.writes import Write
from safeflux.plan.status import State
from safeflux.policy.load import Adapters, Category, Policy
from tests.helpers.policies import BLADES, BOTH, SPIRITS

POLICIES = {"blades": BLADES, "both": BOTH, "spirits": SPIRITS}


@pytest.fixture
def guarded_bits(base_transformer, store, bits_of):
    """The bits of a copy of the base model under each policy alone."""
    found = {}
    for name, policy in POLICIES.items():
        model = copy.deepcopy(base_transformer)
        guard(model, policy, store=store)
        found[name] = bits_of(model)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_switch_gives_the_bits_of_a_guard_alone_and_closing_gives_the_base(transformer, store, bits_of, dtype):
    transformer.to(dtype)
    before, expected = bits_of(transformer), {}
    for name, policy in POLICIES.items():
        with guard(transformer, policy, store=store):
            expected[name] = bits_of(transformer)
    with PolicyPool(transformer, POLICIES, store=store) as pool:
        assert pool.in_force == "blades"
        for name in ("blades", "spirits", "both", "spirits", "blades", "both", "blades"):
            with pool.under(name) as handle:
                assert bits_of(transformer) == expected[name]
                assert pool.in_force == name
                assert handle.plan.policy is POLICIES[name]
                assert handle.verify(deep=True).ok
    assert bits_of(transformer) == before
    assert "_safeflux" not in vars(transformer)


def test_masks_that_cross_in_one_matrix_are_parted_by_element(transformer, store, make_masks, make_meta, bits_of):
    """Neurons of an input are rows of it, those of an output are columns, and single weights lie in both."""
    before = bits_of(transformer)
    kinds = {"rows": ("ff", "norm"), "columns": ("mlp",), "points": ("weight",), "all": ("ff", "mlp", "norm", "weight")}
    policies = {}
    for seed, (name, kind) in enumerate(kinds.items()):
        save_masks(store / "tiny-flux" / f"{name}.safetensors", make_masks(seed + 10, kind, 0.3), make_meta())
        policies[name] = Policy(name=name, categories={"weapons": Category(masks=(name,))})
    expected = {}
    for name, policy in policies.items():
        with guard(transformer, policy, store=store):
            expected[name] = bits_of(transformer)
    with PolicyPool(transformer, policies, store=store) as pool:
        for old in policies:
            for new in policies:
                with pool.under(old):
                    pass
                with pool.under(new):
                    assert bits_of(transformer) == expected[new], (old, new)
    assert bits_of(transformer) == before


def test_only_what_differs_is_written(transformer, store):
    pool = PolicyPool(transformer, {"blades": BLADES, "again": BLADES, "both": BOTH}, store=store)
    tensors = dict(transformer.named_parameters())

    def versions():
        return {name: tensor._version for name, tensor in tensors.items()}

    before = versions()
    with pool.under("again"):
        assert versions() == before
        assert pool.in_force == "again"
    spirits = {place for place, _, _ in guard(copy.deepcopy(transformer), SPIRITS, store=store)._entry.undo.places()}
    with pool.under("both"):
        assert {name for name, version in versions().items() if version != before[name]} == spirits
    pool.close()


def test_what_is_kept_for_eight_policies_is_their_differences_alone(transformer, store, make_masks, make_meta):
    whole = make_masks(3, ("weight",), 0.1)
    parts = [{name: keep.copy() for name, keep in whole.items()} for _ in range(8)]
    for name, keep in whole.items():
        off = (~keep).reshape(-1).nonzero()[0]
        for number, part in enumerate(parts):
            part[name].reshape(-1)[off[number::8]] = True  # each policy leaves out another eighth
    policies = {}
    for number, part in enumerate(parts):
        save_masks(store / "tiny-flux" / f"p{number}.safetensors", MaskSet(part), make_meta())
        policies[f"p{number}"] = Policy(name=f"p{number}", categories={"weapons": Category(masks=(f"p{number}",))})
    pool = PolicyPool(transformer, policies, store=store)
    assert pool.num_bytes_kept == whole.count.masked * (8 + 4)  # each element once: its place and its float32
    alone = PolicyPool(copy.deepcopy(transformer), {"one": policies["p0"]}, store=store)
    assert alone.num_bytes_kept == 0


def test_verify_status_and_receipt_say_which_policy_is_in_force(transformer, store):
    pool = PolicyPool(transformer, POLICIES, store=store)
    for name, policy in POLICIES.items():
        with pool.under(name):
            for deep in (False, True):
                found = pool.verify(deep=deep)
                assert found.ok
                assert found.policy == policy.name
            receipt = pool.receipt()
            assert receipt["state"] == State.GUARDED
            assert receipt["policy"]["sha256"] == policy.digest
            assert receipt["pool"]["in_force"] == name
            assert receipt["pool"]["policies"] == {key: each.digest for key, each in POLICIES.items()}
            bits = {category: entry["bits"] for category, entry in receipt["categories"].items()}
            assert bits.keys() == policy.categories.keys()
            assert all(each["requested"] == each["in_force"] > 0 for each in bits.values())
    pool.close()
    assert pool.verify().state is State.UNGUARDED
    with pytest.raises(ApplyError, match="no policy of this pool is in force"):
        pool.under("both").__enter__()


def test_a_switch_keeps_what_verify_knows_and_a_change_by_others_is_still_found(transformer, store):
    pool = PolicyPool(transformer, POLICIES, store=store)
    assert pool.verify().ok
    seen = pool.handle._entry.seen
    with pool.under("spirits"):
        assert pool.verify().ok
        assert pool.handle._entry.seen is seen  # nothing was read anew
    with torch.no_grad():
        transformer.context_embedder.weight += 1
    assert pool.verify().state is State.DEGRADED


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.context_embedder.weight.add_(1),
        lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model: model.to(torch.bfloat16),
        lambda model: setattr(
            model.context_embedder, "weight", torch.nn.Parameter(model.context_embedder.weight.clone())
        ),
    ],
    ids=["written to", "loaded anew", "cast", "replaced"],
)
@pytest.mark.parametrize("first", ["blades", "spirits"])
@torch.no_grad()
def test_weights_that_others_changed_are_never_mixed_with_saved_ones(transformer, store, bits_of, change, first):
    pool = PolicyPool(transformer, POLICIES, store=store)
    with pool.under(first):
        pass
    change(transformer)
    changed = bits_of(transformer)
    with pytest.raises(ApplyError, match=r"cannot switch: .*[Nn]othing was written|nothing was written"):
        pool.under("both").__enter__()
    assert bits_of(transformer) == changed
    assert pool.in_force == first


@torch.no_grad()
def test_a_change_that_was_taken_back_hinders_nothing(transformer, store, bits_of, guarded_bits):
    pool = PolicyPool(transformer, POLICIES, store=store)
    saved = transformer.state_dict()["x_embedder.weight"].clone()
    transformer.x_embedder.weight.add_(1)
    transformer.x_embedder.weight.copy_(saved)
    transformer.context_embedder.weight.data = transformer.context_embedder.weight.data.clone()
    with pool.under("both"):
        assert bits_of(transformer) == guarded_bits["both"]
    with pool.under("spirits"):
        assert bits_of(transformer) == guarded_bits["spirits"]


def test_a_model_loaded_in_inference_mode_has_a_pool(base_transformer, store, guarded_bits, bits_of):
    with torch.inference_mode():
        model = copy.deepcopy(base_transformer)
        pool = PolicyPool(model, POLICIES, store=store)
        for name in ("both", "spirits", "blades"):
            with pool.under(name):
                assert bits_of(model) == guarded_bits[name]
                assert pool.verify().ok


def test_a_guard_that_stands_below_stays_and_one_on_top_is_respected(transformer, store, bits_of, guarded_bits):
    before = bits_of(transformer)
    floor = guard(transformer, BLADES, store=store)
    pool = PolicyPool(transformer, {"spirits": SPIRITS, "both": BOTH}, store=store)
    for name in ("both", "spirits"):
        with pool.under(name):
            assert bits_of(transformer) == guarded_bits["both"]
            assert floor.verify(deep=True).ok
    with pytest.raises(ApplyError, match="was put on top"):
        floor.undo()
    pool.close()
    floor.undo()
    pool = PolicyPool(transformer, {"spirits": SPIRITS, "again": SPIRITS}, store=store)
    top = guard(transformer, BLADES, store=store)
    with pytest.raises(ApplyError, match="policy 'blades-only' was put on top of the pool"):
        pool.under("again").__enter__()
    top.undo()
    with pool.under("again"):
        assert pool.verify(deep=True).ok
    pool.close()
    assert bits_of(transformer) == before


def test_handles_of_a_pool_neither_swap_nor_refresh(transformer, store, guarded_bits, bits_of):
    pool = PolicyPool(transformer, POLICIES, store=store)
    with pytest.raises(ApplyError, match="one of a pool"):
        pool.handle.swap(SPIRITS, store=store)
    with pytest.raises(ApplyError, match="a pool of policies is in force"):
        pool.handle.refresh()
    assert bits_of(transformer) == guarded_bits["blades"]
    with pool.under("spirits"):
        assert pool.verify().ok


def test_what_cannot_be_pooled_is_refused_and_nothing_is_written(transformer, store, bits_of):
    before = bits_of(transformer)
    allowing = SPIRITS.model_copy(update={"adapters": Adapters.ALLOW})
    missing = Policy(name="missing", categories={"weapons": Category(masks=("spirits",), erases=("dagger",))})
    cases = [
        ({}, {}, PolicyError, "1 to 64 policies, got 0"),
        ({str(n): BLADES for n in range(65)}, {}, PolicyError, "got 65"),
        ({"a": BLADES, "b": allowing}, {}, PolicyError, "'a' says adapters: deny, 'b' says adapters: allow"),
        ({"a": BLADES, "b": missing}, {}, MaskMismatchError, "erase"),
        ({"a": BLADES}, {"at_once": 0}, ApplyError, "at_once"),
        ({"a": BLADES}, {"patience": -1}, ApplyError, "patience"),
    ]
    for policies, options, error, words in cases:
        with pytest.raises(error, match=words):
            PolicyPool(transformer, policies, store=store, **options)
        assert bits_of(transformer) == before
        assert not record_of(transformer).entries
    pool = PolicyPool(transformer, {"family": BLADES}, store=store)
    with pytest.raises(ApplyError, match="no policy 'adult' in the pool; it has 'family'"):
        pool.under("adult")


def test_two_names_of_one_tensor_are_switched_together(base_transformer, store, bits_of):
    model = copy.deepcopy(base_transformer)
    first, second = (model.transformer_blocks[n].ff.net[2] for n in (0, 1))
    second.weight = first.weight
    pool = PolicyPool(model, POLICIES, store=_with_fingerprint(store, model))
    with pool.under("both"):
        assert pool.verify(deep=True).ok
    second.weight = torch.nn.Parameter(torch.ones_like(first.weight))
    assert pool.verify(deep=True).state is State.DEGRADED


def _with_fingerprint(store, model):
    """The same masks, as made for this model."""
    for path in (store / "tiny-flux").glob("*.safetensors"):
        masks, meta = load_masks(path)
        save_masks(path, masks, replace(meta, fingerprint=fingerprint(model)))
    return store


def test_other_policies_take_the_place_of_a_pools_all_or_nothing(
    transformer, store, bits_of, guarded_bits, monkeypatch
):
    before = bits_of(transformer)
    pool = PolicyPool(transformer, {"blades": BLADES, "both": BOTH}, store=store)
    with pool.under("both"):
        pass
    missing = Policy(name="missing", categories={"weapons": Category(masks=("nowhere",))})
    with pytest.raises(StoreError, match="nowhere"):
        pool.replace({"both": BOTH, "other": missing})
    written = itertools.count()

    def fail(write, fill=Write.fill_):
        fill(write)
        if next(written) == 5:
            raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Write, "fill_", fail)
        with pytest.raises(ApplyError, match="replacing the policies failed"):
            pool.replace({"spirits": SPIRITS})
    assert list(pool.policies) == ["blades", "both"]
    assert bits_of(transformer) == guarded_bits["both"]
    with pool.under("blades"):
        assert bits_of(transformer) == guarded_bits["blades"]
        assert pool.verify(deep=True).ok
    pool.replace({"spirits": SPIRITS, "blades": BOTH})
    assert pool.in_force == "blades"  # the name stays, what it says is another
    assert bits_of(transformer) == guarded_bits["both"]
    assert pool.verify(deep=True).ok
    with pytest.raises(ApplyError, match="no policy 'both' in the pool"):
        pool.under("both")
    with pool.under("spirits") as handle:
        assert bits_of(transformer) == guarded_bits["spirits"]
        assert handle.plan.policy is SPIRITS
        with pytest.raises(ApplyError, match="this thread is drawing"):
            pool.replace({"both": BOTH})
    pool.close()
    assert bits_of(transformer) == before


def test_small_differences_in_one_tensor_are_one_write_each_way(transformer, store, make_masks, make_meta):
    """What two policies share with a third parts their difference in two, which a switch writes as one."""
    whole = make_masks(3, ("weight",), 0.1)
    thirds = {"old": (0, 1), "new": (2, 3), "third": (1, 2)}
    policies = {}
    for policy, quarters in thirds.items():
        part = {name: keep.copy() for name, keep in whole.items()}
        for name, keep in whole.items():
            off = (~keep).reshape(-1).nonzero()[0]
            for quarter in {0, 1, 2, 3} - set(quarters):
                part[name].reshape(-1)[off[quarter::4]] = True
        save_masks(store / "tiny-flux" / f"{policy}.safetensors", MaskSet(part), make_meta())
        policies[policy] = Policy(name=policy, categories={"weapons": Category(masks=(policy,))})
    pool = PolicyPool(transformer, policies, store=store)
    written = {layer.write.name: layer.write.tensor for layer in pool._member.members.layers.all}
    before, kept = sum(tensor._version for tensor in written.values()), pool.num_bytes_kept
    with pool.under("new") as handle:
        assert sum(tensor._version for tensor in written.values()) == before + 2 * len(written)
        assert handle.verify(deep=True).ok
    assert kept < pool.num_bytes_kept <= kept + 2**20  # what was joined is counted
    pool.close()
