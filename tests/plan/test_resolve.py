"""A plan checks everything and writes nothing."""

import pytest
import torch

from safeflux.errors import MaskMismatchError, ModelError, PolicyError, StoreError
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import Count, MaskSet, compose, keep_all
from safeflux.masks.store import Store
from safeflux.model.planning import make_plan
from safeflux.model.weights import fingerprint
from safeflux.policy.load import Action, Budget, Category, Policy, load_policy
from tests.helpers.models import WEIGHTS


def policy(budget=1.0, adapters="deny", **categories):
    entries = {name: Category(masks=masks) if isinstance(masks, tuple) else masks for name, masks in categories.items()}
    return Policy(name="test", adapters=adapters, budget=Budget(max_share_masked=budget), categories=entries)


def test_enforced_categories_are_composed_and_others_only_looked_up(transformer, store, make_masks, bits_of):
    before = bits_of(transformer)
    blades, spirits = make_masks(1, WEIGHTS, 0.02), make_masks(2, ("ff", "mlp", "norm"))
    plan = make_plan(policy(weapons=("blades",), alcohol=("spirits",)), transformer, Store([store]))
    assert plan.masks == compose(blades, spirits)
    assert plan.base == fingerprint(transformer)
    assert plan.categories["weapons"].masks == blades
    audit = Category(action=Action.AUDIT, masks=("spirits",))
    plan = make_plan(policy(weapons=("blades",), alcohol=audit), transformer, Store([store]))
    assert plan.masks == blades
    assert plan.categories["alcohol"].masks == spirits
    assert bits_of(transformer) == before


def test_a_pipeline_is_planned_by_its_transformer(pipe, store):
    one = make_plan(policy(weapons=("blades",)), pipe, Store([store]))
    assert one.masks == make_plan(policy(weapons=("blades",)), pipe.transformer, Store([store])).masks


def test_shares_count_all_bits_that_the_model_has(transformer, store, make_meta):
    mask = torch.ones(128, dtype=torch.bool)
    mask[:32] = False
    save_masks(store / "few.safetensors", MaskSet({"transformer_blocks.0.ff:ff": mask}), make_meta())
    plan = make_plan(policy(weapons=("few",)), transformer, Store([store]))
    assert plan.shares["ff"] == Count(32, 512)
    assert plan.shares["weight"] == Count(0, sum(s.num_bits for s in plan.sites.values() if s.kind == "weight"))


def test_the_budget_holds_for_each_kind_and_for_what_stands_already(transformer, store):
    room = Store([store])
    share = make_plan(policy(alcohol=("spirits",)), transformer, room).shares["ff"].share
    make_plan(policy(alcohol=("spirits",), budget=0.2), transformer, room)
    with pytest.raises(PolicyError, match=r"'test': budget.max_share_masked is 0.05, and 0\.\d+ of the ff bits"):
        make_plan(policy(alcohol=("spirits",), budget=0.05), transformer, room)
    assert share > 0.05
    standing = make_plan(policy(alcohol=("spirits",)), transformer, room)
    with pytest.raises(PolicyError, match="of the ff bits"):
        make_plan(policy(weapons=("blades",), budget=0.05), transformer, room, standing=(standing,))
    tight = make_plan(policy(weapons=("blades",), budget=0.05), transformer, room)
    with pytest.raises(PolicyError, match=r"max_share_masked is 0.05.*of the ff bits"):
        make_plan(policy(alcohol=("spirits",)), transformer, room, standing=(tight,))


def test_a_mask_that_is_not_there_is_told_by_the_line_that_asks_for_it(transformer, store, tmp_path):
    path = tmp_path / "mine.yaml"
    head = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ncategories:\n"
    path.write_text(f"{head}  weapons: {{masks: [blade]}}\n")
    with pytest.raises(StoreError, match=r"mine\.yaml:5: category 'weapons': mask set 'blade'.*mean 'blades'"):
        make_plan(load_policy(path), transformer, Store([store]))


def test_unknown_masks_name_the_category(transformer, store):
    with pytest.raises(StoreError, match="category 'weapons': mask set 'blade' is not in the store"):
        make_plan(policy(weapons=("blade",)), transformer, Store([store]))
    audit = Category(action=Action.AUDIT, masks=("nothing",))
    with pytest.raises(StoreError, match="category 'alcohol'"):
        make_plan(policy(weapons=("blades",), alcohol=audit), transformer, Store([store]))


def test_masks_for_another_base_are_refused(other_transformer, store):
    with pytest.raises(MaskMismatchError, match=r"category 'weapons'.*other base weights \(tiny-flux\)"):
        make_plan(policy(weapons=("blades",)), other_transformer, Store([store]))


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda sites: keep_all(sites.values()), {}, "switches nothing off"),
        (lambda sites: MaskSet({"transformer_blocks.9.ff:ff": torch.zeros(128) > 0}), {}, "no such site"),
        (
            lambda sites: MaskSet({"transformer_blocks.0.ff:ff": torch.zeros(64) > 0}),
            {},
            r"mask \(64,\), model \(128,\)",
        ),
        (
            lambda sites: MaskSet({"transformer_blocks.0.ff:ff": torch.zeros(128) > 0}),
            {"family": "flux9"},
            "family 'flux9'",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(transformer, store, make_meta, make, changes, message):
    save_masks(store / "odd.safetensors", make(find_sites(transformer)), make_meta(**changes))
    with pytest.raises(MaskMismatchError, match=f"category 'weapons': .*{message}"):
        make_plan(policy(weapons=("odd",)), transformer, Store([store]))


def test_what_is_no_flux_is_refused(store):
    with pytest.raises(ModelError, match="not a FLUX model"):
        make_plan(policy(weapons=("blades",)), torch.nn.Linear(2, 2), Store([store]))
