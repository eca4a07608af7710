"""A mask is what its file says, not what it is called: policies that say otherwise are refused everywhere."""

import json
import shutil

import pytest
from click.testing import CliRunner

from safeflux.baking.bake import bake
from safeflux.cli import main
from safeflux.errors import MaskMismatchError
from safeflux.masks.file import save_masks
from safeflux.masks.store import open_store
from safeflux.model.guard import guard
from safeflux.policy.claims import Claim, faults
from safeflux.policy.diff import Effect, compare
from safeflux.policy.load import Action, Category, Policy, PolicyFileError, load_policy
from tests.helpers.policies import BLADES

HEAD = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\n"


def one(name, *masks, **more):
    return Policy(name="mine", categories={name: Category(masks=masks, **more)})


def test_a_mask_of_another_category_writes_nothing(transformer, store, bits_of, bfl, tmp_path):
    before = bits_of(transformer)
    told = r"category 'alcohol': mask set 'blades' erases weapons \(dagger, kitchen knife\), not alcohol; use a mask of"
    for action in Action:
        with pytest.raises(MaskMismatchError, match=told):
            guard(transformer, one("alcohol", "blades", action=action), store=store, dry_run=True)
    handle = guard(transformer, BLADES, store=store)
    masked = bits_of(transformer)
    with pytest.raises(MaskMismatchError, match=told):
        handle.swap(one("alcohol", "blades"), store=store)
    assert bits_of(transformer) == masked
    handle.undo()
    with pytest.raises(MaskMismatchError, match=told):
        bake(bfl, tmp_path / "out.safetensors", one("alcohol", "blades"), store=store)
    assert not (tmp_path / "out.safetensors").exists()
    assert bits_of(transformer) == before


def test_a_copy_under_another_name_is_what_it_was(transformer, store):
    home = next(store.rglob("blades.safetensors")).parent
    shutil.copy(home / "blades.safetensors", home / "vehicles.safetensors")
    with pytest.raises(MaskMismatchError, match=r"mask set 'vehicles' erases weapons .* write `erases: \[weapons\]`"):
        guard(transformer, one("vehicles", "vehicles"), store=store)
    assert guard(transformer, one("weapons", "vehicles"), store=store, dry_run=True)


def test_a_policy_can_say_what_its_masks_erase(transformer, store):
    assert guard(transformer, one("bar", "spirits", erases=("alcohol",)), store=store, dry_run=True)
    assert guard(transformer, one("beer", "spirits"), store=store, dry_run=True)  # a concept of the file
    both = one("bad", "spirits", "blades", erases=("alcohol", "weapons"))
    assert guard(transformer, both, store=store, dry_run=True)
    with pytest.raises(MaskMismatchError, match=r"none of its masks \(spirits\) erases weapons; they erase alcohol"):
        guard(transformer, one("bad", "spirits", erases=("alcohol", "weapons")), store=store)


def claim(mask, category, *concepts):
    return Claim(mask, f"{mask}.safetensors", category, concepts or (category,))


@pytest.mark.parametrize(
    ("category", "claims", "count"),
    [
        (Category(masks=("a",)), [claim("a", "weapons")], 0),
        (Category(masks=("a",)), [claim("a", "things", "weapons")], 0),
        (Category(masks=("a", "b")), [claim("a", "weapons"), claim("b", "tobacco")], 1),
        (Category(masks=("a", "b"), erases=("tobacco",)), [claim("a", "weapons"), claim("b", "tobacco")], 0),
        (Category(masks=("a",), erases=("tobacco",)), [claim("a", "weapons")], 1),
        (Category(masks=("a", "b")), [claim("a", "tobacco"), claim("b", "alcohol")], 2),
    ],
)
def test_what_agrees_and_what_does_not(category, claims, count):
    assert len(faults("weapons", category, claims)) == count


def write(folder, body, name="mine"):
    path = folder / f"{name}.yaml"
    path.write_text(HEAD + body)
    return path


def test_a_child_may_erase_more_and_never_something_else_instead(tmp_path):
    write(tmp_path, "categories:\n  weapons: {masks: [weapons]}\n", "base")
    child = "extends: base.yaml\ncategories:\n  weapons: {{masks: [weapons, vehicles], erases: [{}]}}\n"
    more = load_policy(write(tmp_path, child.format("weapons, vehicles")))
    assert more.categories["weapons"].erases == ("weapons", "vehicles")
    told = r"mine.yaml:6:49: loosens categories.weapons.erases: the parent has weapons \(default\); a child may only"
    with pytest.raises(PolicyFileError, match=told):
        load_policy(write(tmp_path, child.format("vehicles")))
    changes = compare(load_policy(tmp_path / "base.yaml"), more)
    assert [(change.key, change.new) for change in changes if change.effect is Effect.TIGHTENS] == [
        ("categories.weapons.masks", "vehicles"),
        ("categories.weapons.erases", "vehicles"),
    ]


def test_the_own_name_written_out_is_the_default(tmp_path):
    plain = load_policy(write(tmp_path, "categories: {weapons: {masks: [weapons]}}\n"))
    said = load_policy(write(tmp_path, "categories: {weapons: {masks: [weapons], erases: [weapons]}}\n", "said"))
    assert said.digest == plain.digest
    other = load_policy(write(tmp_path, "categories: {weapons: {masks: [weapons], erases: [bombs]}}\n", "other"))
    assert other.digest != plain.digest


def test_text_of_a_file_reaches_no_terminal_as_it_is(transformer, store, make_masks, make_meta):
    save_masks(store / "odd.safetensors", make_masks(1), make_meta(category="x\x1b[2J"))
    with pytest.raises(MaskMismatchError) as caught:
        guard(transformer, one("weapons", "odd"), store=store)
    assert "\x1b" not in str(caught.value)


def rate(mask, row, side):
    return mask["figures"][row][side]["rate"]


@pytest.mark.parametrize("policy", ["strict", "brand", "moderate", "family"])
def test_plan_says_what_each_bundled_mask_erases_and_costs(policy):
    told = json.loads(CliRunner().invoke(main, ["policy", "plan", policy, "--json"], catch_exceptions=False).stdout)
    for name, category in told["categories"].items():
        for mask in category["masks"].values():
            assert mask["erases"]["category"] in (name, "fluent-style")
            assert rate(mask, "found", "masked") < 0.05 < 0.95 < rate(mask, "found", "base")
            assert rate(mask, "everything else right", "base") > 0.95
    text = CliRunner().invoke(main, ["policy", "plan", policy], catch_exceptions=False).stdout
    assert text.count("    erases ") == text.count("found 9") + text.count("found 100.0 %") == len(told["categories"])


def test_explain_says_it_too_and_what_is_in_no_store(tmp_path, store):
    path = write(tmp_path, "categories:\n  weapons: {masks: [blades]}\n  drugs: {masks: [nowhere, drugs]}\n")
    arguments = ["policy", "explain", str(path), "--store", str(store)]
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert "blades  erases weapons (dagger, kitchen knife) of tiny-flux; no rates in the file" in text
    assert "drugs  erases drugs (pill, syringe) of emoji-flux; alone: found 100.0 % -> 0.0 %" in text
    assert "nowhere  is in no store" in text
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert told["masks"]["nowhere"] == []
    assert told["masks"]["blades"][0]["erases"] == {"category": "weapons", "concepts": ["dagger", "kitchen knife"]}


def test_each_bundled_mask_is_named_by_what_it_erases():
    """`policy check` relies on it: without a store of one's own, names alone are compared where they agree."""
    store = open_store()
    for name in store.names():
        assert all(name.removesuffix("-things") == found.category for found in store.claims(name))
