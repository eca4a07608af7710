"""What removal says of tensors by name, held against true cuts of checkpoints in both layouts."""

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
)

from safeflux.errors import ApplyError, ModelError
from safeflux.families import FAMILIES
from safeflux.families.sites import find_sites, parameter_shapes
from safeflux.masks.cuts import REMOVABLE, WIDTHS, Kept, compact_shapes, keeps, kept_neurons, recorded_widths
from safeflux.masks.mask_set import MaskSet
from tests.families import test_flux2, test_sites

DIM = 3072
CHECKPOINTS = {
    "flux1": (test_sites.bfl_checkpoint, convert_flux_transformer_checkpoint_to_diffusers),
    "flux2": (test_flux2.bfl_checkpoint, convert_flux2_transformer_checkpoint_to_diffusers),
}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def cut(tensors, kept: dict[str, Kept]):
    """Tensors without what does not stay."""
    everything = Kept(None, None)
    return {
        name: tensor[slice(None) if rows is None else rows][..., slice(None) if columns is None else columns]
        for name, tensor in tensors.items()
        for rows, columns in [kept.get(name, everything)]
    }


def random_masks(sites, kinds=REMOVABLE):
    draw = np.random.default_rng(0)
    return MaskSet({name: draw.random(site.shape) >= 0.5 for name, site in sites.items() if site.kind in kinds})


@pytest.mark.parametrize(
    ("keep", "round_to", "expected"),
    [
        ([1, 0, 1, 1, 0, 1], 1, [0, 2, 3, 5]),
        ([1, 0, 1, 1, 0, 1], 4, [0, 2, 3, 5]),
        ([1, 0, 1, 1, 0, 1], 5, [0, 1, 2, 3, 5]),
        ([1, 0, 1, 1, 0, 1], 64, [0, 1, 2, 3, 4, 5]),
        ([0, 0, 0], 1, [0]),
        ([0, 0, 0], 2, [0, 1]),
        ([1, 1, 1], 1, [0, 1, 2]),
    ],
)
def test_neurons_that_stay_are_those_kept_and_as_few_others_as_round_the_width(keep, round_to, expected):
    assert kept_neurons(np.array(keep, dtype=bool), round_to).tolist() == expected


def test_a_width_is_not_rounded_to_nothing():
    with pytest.raises(ApplyError, match="of at least 1, got 0"):
        kept_neurons(np.array([True]), 0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
def test_removable_neurons_end_their_axis_and_have_their_tensors_to_themselves(family, layout):
    parts = [(rule, part) for rule in family.rules if rule.kind in REMOVABLE for part in rule.parts[layout]]
    assert not any(part.after for _, part in parts)
    for rule, part in parts:
        sharing = {(other.fqn, one.axis) for other, one in parts if one.tensor == part.tensor}
        assert sharing == {(rule.fqn, part.axis)}
        assert {one.piece for other, one in parts if other is rule and one.tensor == part.tensor} == set(
            range(part.pieces)
        )


@pytest.mark.parametrize(("family", "kinds"), [("flux1", ("ff",)), ("flux2", REMOVABLE)])
def test_a_checkpoint_that_is_cut_and_converted_is_one_that_is_converted_and_cut(family, kinds):
    make, convert = CHECKPOINTS[family]
    checkpoint = make()
    sites = find_sites(shapes_of(checkpoint), "bfl")
    masks = random_masks(sites, kinds)
    found = cut(checkpoint, keeps(sites, masks, "bfl", round_to=1))
    assert found["double_blocks.0.txt_mlp.2.weight"].shape != checkpoint["double_blocks.0.txt_mlp.2.weight"].shape
    expected = cut(convert(checkpoint), keeps(sites, masks, round_to=1))
    converted = convert(found)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_queries_keys_values_and_attention_stay_whole_in_the_fused_matrices_of_flux1():
    """The converter splits these by fixed numbers, so that it cannot be asked."""
    checkpoint = test_sites.bfl_checkpoint()
    masks = random_masks(find_sites(shapes_of(checkpoint), "bfl"))
    kept = np.flatnonzero(masks["single_transformer_blocks.0:mlp"])
    found = cut(checkpoint, keeps(find_sites(shapes_of(checkpoint), "bfl"), masks, "bfl", round_to=1))
    for name, ahead in (("linear1.weight", 3 * DIM), ("linear1.bias", 3 * DIM), ("linear2.weight", DIM)):
        numbers = found[f"single_blocks.0.{name}"]  # each number is the row or column that it stood in
        if numbers.dim() == 2:
            numbers = numbers[0] if name == "linear2.weight" else numbers[:, 0]
        assert numbers.tolist() == [*range(ahead), *(ahead + kept)]


@pytest.mark.parametrize("family", CHECKPOINTS)
@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
def test_recorded_widths_give_the_shapes_of_the_cut_tensors(family, layout):
    make, convert = CHECKPOINTS[family]
    tensors = make() if layout == "bfl" else convert(make())
    sites = find_sites(shapes_of(tensors), layout)
    masks = random_masks(sites)
    found = shapes_of(cut(tensors, keeps(sites, masks, layout)))
    widths = {name: site.shape[0] for name, site in find_sites(found, layout).items() if site.kind in REMOVABLE}
    assert all(width % 64 == 0 and width < sites[name].shape[0] for name, width in widths.items())
    assert compact_shapes({WIDTHS: widths}, shapes_of(tensors), layout) == found


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "expected 'safeflux_widths'.*from_pretrained"),
        ([64], "expected 'safeflux_widths'"),
        ({"transformer_blocks.9.ff:ff": 64}, "names 'transformer_blocks.9.ff:ff'"),
        ({"context_embedder:weight": 4}, "no such feed-forward"),
        ({"transformer_blocks.0.ff:ff": 0}, "from 1 to 127, got 0"),
        ({"transformer_blocks.0.ff:ff": 128}, "got 128"),
        ({"transformer_blocks.0.ff:ff": True}, "got True"),
        ({"transformer_blocks.0.ff:ff": 64.0}, r"got 64\.0"),
    ],
)
def test_a_record_that_is_not_of_this_model_is_refused(base_transformer, record, message):
    config = {} if record is None else {WIDTHS: record}
    with pytest.raises(ModelError, match=message):
        recorded_widths(config, find_sites(parameter_shapes(base_transformer)))
