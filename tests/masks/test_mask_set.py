"""The algebra of masks: laws by hypothesis, counts by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeflux.errors import MaskMismatchError
from safeflux.families.sites import Site
from safeflux.masks.mask_set import Change, Count, MaskSet, check_fit, compose, diff, keep_all, overlap

SITES = (Site("a.ff", "ff", (5,)), Site("b", "mlp", (3,)), Site("c", "weight", (2, 4)))


def mask_of(site):
    bits = st.lists(st.booleans(), min_size=site.num_bits, max_size=site.num_bits)
    return bits.map(lambda values: torch.tensor(values).view(site.shape))


def mask_sets():
    """Sets that name any of the sites, none included."""
    entries = {site.name: mask_of(site) for site in SITES}
    return st.fixed_dictionaries({}, optional=entries).map(MaskSet)


def off(masks):
    """The bits that are off, as plain pairs: an independent reading of a set."""
    return {(name, bit) for name, mask in masks.items() for bit in np.flatnonzero(~mask).tolist()}


@given(mask_sets(), mask_sets())
def test_compose_is_the_union_of_what_is_off(a, b):
    assert off(compose(a, b)) == off(a) | off(b)


@given(mask_sets(), mask_sets())
def test_compose_commutes(a, b):
    assert compose(a, b) == compose(b, a)


@given(mask_sets(), mask_sets(), mask_sets())
def test_compose_associates(a, b, c):
    assert compose(compose(a, b), c) == compose(a, compose(b, c)) == compose(a, b, c)


@given(mask_sets())
def test_compose_is_idempotent_and_has_identities(a):
    assert compose(a, a) == a
    assert compose(a) == a
    assert compose(a, MaskSet({})) == a
    assert compose(a, keep_all(site for site in SITES if site.name in a)) == a


@given(mask_sets(), mask_sets(), mask_sets())
def test_one_more_set_never_switches_a_bit_back_on(a, b, c):
    assert off(compose(a, b)) <= off(compose(a, b, c))


@given(mask_sets(), mask_sets())
def test_overlap_and_diff_count_what_they_say(a, b):
    assert sum(overlap(a, b).values()) == len(off(a) & off(b))
    changes = diff(a, b).values()
    assert sum(c.off for c in changes) == len(off(b) - off(a))
    assert sum(c.on for c in changes) == len(off(a) - off(b))


@given(mask_sets())
def test_counts_add_up(a):
    assert a.count == Count(len(off(a)), sum(mask.size for mask in a.values()))
    assert sum(c.masked for c in a.counts_by_kind.values()) == a.count.masked
    assert sum(c.total for c in a.counts.values()) == a.count.total
    assert a.share_masked == (len(off(a)) / a.count.total if a.count.total else 0)


@given(mask_sets())
def test_copies_are_equal_by_content(a):
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert twin == a
        assert hash(twin) == hash(a)


def test_sets_differ_by_one_bit_one_site_or_type():
    a = MaskSet({"x:ff": torch.tensor([True, False])})
    assert a != MaskSet({"x:ff": torch.tensor([True, True])})
    assert a != MaskSet({"x:ff": torch.tensor([True, False]), "y:ff": torch.tensor([True])})
    assert a != {"x:ff": torch.tensor([True, False])}


def test_a_set_cannot_be_changed():
    a = MaskSet({"x:ff": torch.tensor([True])})
    with pytest.raises(AttributeError):
        a.bits = {}
    with pytest.raises(TypeError):
        a.bits["x:ff"] = a.bits["x:ff"]


def test_counts_by_kind_and_diff_by_hand():
    a = MaskSet({"x:ff": torch.tensor([True, False, True]), "y:weight": torch.tensor([[False, False], [True, True]])})
    assert a.counts_by_kind == {"ff": Count(1, 3), "weight": Count(2, 4)}
    assert repr(a) == "MaskSet(2 sites, 3 of 7 bits off)"
    assert diff(a, MaskSet({"x:ff": torch.tensor([False, True, True])})) == {
        "x:ff": Change(1, 1),
        "y:weight": Change(0, 2),
    }


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("x:ff", torch.ones(3)),
        ("x:ff", torch.ones(2, 2, dtype=torch.bool)),
        ("x:weight", torch.ones(4, dtype=torch.bool)),
        ("x:ff", torch.ones(0, dtype=torch.bool)),
        ("x:ff", torch.ones(3, dtype=torch.bool, device="meta")),
        ("x", torch.ones(3, dtype=torch.bool)),
        (":ff", torch.ones(3, dtype=torch.bool)),
    ],
)
def test_what_is_no_mask_is_refused(name, mask):
    with pytest.raises(MaskMismatchError, match=f"mask '{name}': expected"):
        MaskSet({name: mask})


@pytest.mark.parametrize("function", [compose, overlap, diff])
def test_other_shapes_are_refused_by_name(function):
    a, b = (MaskSet({"x:ff": torch.ones(n, dtype=torch.bool)}) for n in (2, 3))
    with pytest.raises(MaskMismatchError, match=r"site 'x:ff'.*\(2,\).*\(3,\)"):
        function(a, b)


def test_masks_must_fit_the_sites():
    sites = {site.name: site for site in SITES}
    check_fit(keep_all(SITES), sites)
    with pytest.raises(MaskMismatchError, match="empty mask set"):
        check_fit(MaskSet({}), sites)
    strange = {f"z{i}:ff": torch.ones(2, dtype=torch.bool) for i in range(4)}
    with pytest.raises(MaskMismatchError, match=r"5 of 5 sites.*z0:ff \(the model has no such site\).*and 2 more"):
        check_fit(MaskSet(strange | {"b:mlp": torch.ones(4, dtype=torch.bool)}), sites)
    with pytest.raises(MaskMismatchError, match=r"b:mlp \(mask \(4,\), model \(3,\)\)"):
        check_fit(MaskSet({"b:mlp": torch.ones(4, dtype=torch.bool)}), sites)
