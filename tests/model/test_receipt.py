"""Status and receipt: what was asked for and what is in force, read from the model."""

import json

import numpy as np
import torch

from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import Amount, State, make_status
from safeflux.policy.load import Action, Category, Policy

BLADES = Policy(name="blades-only", categories={"weapons": Category(masks=("blades",))})
BOTH = Policy(name="both", categories=BLADES.categories | {"alcohol": Category(masks=("spirits",))})


def test_status_sets_requested_against_in_force(transformer, store):
    audit = Category(action=Action.AUDIT, masks=("spirits",))
    handle = guard(transformer, Policy(name="p", categories=BLADES.categories | {"alcohol": audit}), store=store)
    status = handle.status
    weapons, alcohol = status.categories["weapons"].bits, status.categories["alcohol"].bits
    assert weapons.requested == weapons.in_force == handle.plan.masks.count.masked > 0
    assert (alcohol.requested, alcohol.in_force) == (0, 0)
    assert all(amount.requested == amount.in_force for amount in status.sites.values())
    row, column = np.argwhere(~handle.plan.masks["context_embedder:weight"])[0].tolist()
    with torch.no_grad():
        transformer.context_embedder.weight[row, column] = 0.5
    status = handle.status
    assert status.state is State.DEGRADED
    assert status.categories["weapons"].bits.in_force == weapons.requested - 1
    assert status.sites["context_embedder:weight"].in_force == status.sites["context_embedder:weight"].requested - 1


def test_nothing_is_in_force_unless_it_was_read(transformer, store):
    plan = guard(transformer, BLADES, store=store, dry_run=True).plan
    status = make_status(plan, MaskSet({}), State.UNGUARDED, ())
    requested = plan.masks.count.masked
    assert status.categories["weapons"].bits == Amount(requested, 0)
    assert sum(amount.in_force for amount in status.sites.values()) == 0
    assert sum(amount.requested for amount in status.sites.values()) == requested


def test_the_receipt_is_json_and_tells_both_sides(transformer, base_transformer, store, tmp_path):
    handle = guard(transformer, BOTH, store=store)
    receipt = json.loads(json.dumps(handle.receipt()))
    assert receipt["state"] == "GUARDED"
    assert receipt["base"]["fingerprint"] == fingerprint(base_transformer)
    assert receipt["policy"] == {
        "name": "both",
        "sha256": BOTH.digest,
        "effective": json.loads(json.dumps(BOTH.values())),
    }
    weapons = receipt["categories"]["weapons"]
    assert weapons["bits"]["requested"] == weapons["bits"]["in_force"] > 0
    assert weapons["masks"][0]["name"] == "blades"
    assert len(weapons["masks"][0]["file_sha256"]) == 64
    assert receipt["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    text = json.dumps(receipt)
    assert str(tmp_path) not in text
    assert "compliant" not in text
    handle.undo()
    assert handle.receipt()["state"] == "UNGUARDED"
    assert handle.receipt()["categories"]["weapons"]["bits"]["in_force"] == 0


def test_the_reprs_are_tables_of_twenty_lines_at_most(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    for shown in (repr(handle.plan), repr(handle.status)):
        assert len(shown.splitlines()) <= 20
        assert max(map(len, shown.splitlines())) <= 200
        assert all(word in shown for word in ("both", "weapons", "alcohol", "blades", "spirits"))
    assert repr(handle.status).startswith("Status of 'both': GUARDED")
    many = Policy(
        name="many", categories={f"c{n}": Category(masks=("blades",), erases=("weapons",)) for n in range(60)}
    )
    handle.swap(many, store=store)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 1
    status = handle.status
    assert len(status.faults) > 10
    assert len(repr(status).splitlines()) == 20 >= len(repr(handle.plan).splitlines())
    assert "50 more categories" in repr(status)
    assert "50 more categories" in repr(handle.plan)
