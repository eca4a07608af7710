"""Compacted folders are guarded if what is left is what the masks leave of the base model, and only then."""

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from safeflux.baking.bake import bake
from safeflux.baking.verify import verify_files
from safeflux.cli import main
from safeflux.errors import MaskMismatchError, ModelError
from safeflux.families.sites import find_sites
from safeflux.masks.cuts import REMOVABLE
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from tests.families.test_flux2 import masks_for
from tests.helpers.policies import BLADES, BOTH, SPIRITS

WEIGHTS = "diffusion_pytorch_model.safetensors"
FF = "transformer_blocks.1.ff"


@pytest.fixture
def base(base_transformer, tmp_path):
    base_transformer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def small(base, heavy_store, tmp_path):
    """A folder that was compacted by both mask sets."""
    bake(base, tmp_path / "small", BOTH, store=heavy_store, compact=True)
    return tmp_path / "small"


@pytest.mark.parametrize("shards", ["5GB", "20KB"], ids=["one file", "shards"])
def test_what_a_compacting_guard_saved_is_guarded(base, base_transformer, heavy_store, tmp_path, shards):
    model = copy.deepcopy(base_transformer)
    handle = guard(model, BOTH, store=heavy_store, compact=True)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shards)
    found = verify_files(tmp_path / "saved", BOTH, store=heavy_store, base=base)
    assert (found.status.state, found.stamp, found.status.faults) == (State.GUARDED, None, ())
    assert found.status.sites == handle.status.sites
    assert found.status.categories == handle.status.categories


def test_flux2_where_the_parts_of_a_block_are_one_tensor(flux2_transformer, make_meta, tmp_path):
    heavy = {site.name: np.arange(site.shape[0]) % 3 == 0 for site in cuttable(flux2_transformer)}
    masks = MaskSet(masks_for(flux2_transformer, 1, ("weight",)).bits | heavy)
    meta = make_meta(category="alcohol", family="flux2", fingerprint=fingerprint(flux2_transformer))
    save_masks(tmp_path / "spirits.safetensors", masks, meta)
    flux2_transformer.save_pretrained(tmp_path / "base")
    bake(tmp_path / "base", tmp_path / "small", SPIRITS, store=tmp_path, compact=True)
    widths = json.loads((tmp_path / "small" / "config.json").read_text())["safeflux_widths"]
    found = verify_files(tmp_path / "small", SPIRITS, store=tmp_path, base=tmp_path / "base")
    assert (found.status.state, sorted(widths)) == (State.GUARDED, sorted(heavy))


def cuttable(model):
    return [site for site in find_sites(model).values() if site.kind in REMOVABLE]


def test_without_the_base_model_nothing_is_concluded(small, heavy_store):
    with pytest.raises(ModelError, match=r"does not show which neurons were removed.*--base.*--compact --check"):
        verify_files(small, BOTH, store=heavy_store)


def test_where_nothing_was_cut_out_the_zeros_are_read(base, heavy_store, tmp_path):
    bake(base, tmp_path / "small", BLADES, store=heavy_store, compact=True)
    assert verify_files(tmp_path / "small", BLADES, store=heavy_store).status.state is State.GUARDED


def changed(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def one_bit(weights):
    weights[f"{FF}.net.2.weight"].view(torch.int32)[3, 5] ^= 1


def test_a_masked_neuron_in_the_place_of_another_is_found(small, base, heavy_store):
    """The widths are as they should be, and what was masked is back."""
    plan = verify_files(small, BOTH, store=heavy_store, base=base).plan
    off, whole = plan.masks.bits[f"{FF}:ff"].off(), load_file(base / WEIGHTS)

    def exchange(weights):
        weights[f"{FF}.net.0.proj.weight"][0] = whole[f"{FF}.net.0.proj.weight"][off[0]]
        weights[f"{FF}.net.0.proj.bias"][0] = whole[f"{FF}.net.0.proj.bias"][off[0]]
        weights[f"{FF}.net.2.weight"][:, 0] = whole[f"{FF}.net.2.weight"][:, off[0]]

    changed(small, exchange)
    found = verify_files(small, BOTH, store=heavy_store, base=base).status
    assert found.state is State.DEGRADED
    assert found.sites[f"{FF}:ff"].in_force == 0 < found.sites[f"{FF}:ff"].requested
    names = [fault.split("'")[1] for fault in found.faults if fault.startswith("tensor")]
    assert names == [f"{FF}.net.0.proj.bias", f"{FF}.net.0.proj.weight", f"{FF}.net.2.weight"]
    others = [amount for name, amount in found.sites.items() if not name.startswith(FF)]  # its own weights are unknown
    assert all(amount.in_force == amount.requested for amount in others)


def test_one_bit_of_one_tensor_makes_a_feed_forward_unknown(small, base, heavy_store):
    changed(small, one_bit)
    found = verify_files(small, BOTH, store=heavy_store, base=base).status
    assert found.state is State.DEGRADED
    assert found.faults[0].startswith(f"tensor '{FF}.net.2.weight': is not what these masks leave")
    assert [fault for fault in found.faults[1:] if FF not in fault] == []
    assert found.sites[f"{FF}:ff"].in_force == 0


def test_rows_and_weights_that_stayed_are_read(small, base, heavy_store):
    site = "transformer_blocks.0.norm1_context:norm"
    plan = verify_files(small, BOTH, store=heavy_store, base=base).plan
    row = int(plan.masks.bits[site].off()[0])
    changed(small, lambda weights: weights["transformer_blocks.0.norm1_context.linear.bias"][row].fill_(1e-6))
    found = verify_files(small, BOTH, store=heavy_store, base=base).status
    assert found.state is State.DEGRADED
    assert [fault.partition(" of ")[0] for fault in found.faults] == [f"site '{site}': 1"]


def test_other_masks_another_type_and_another_base_are_told(small, base, base_transformer, heavy_store, tmp_path):
    with pytest.raises(
        ModelError, match=r"expected F32 of shape \(128,\), as these masks leave of .* got F32 of shape \(64,\)"
    ):
        verify_files(small, BLADES, store=heavy_store, base=base)
    copy.deepcopy(base_transformer).bfloat16().save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match=r"expected BF16 of shape .* got F32 of .* \(--base\) in the same type"):
        verify_files(small, BOTH, store=heavy_store, base=tmp_path / "half")
    with pytest.raises(MaskMismatchError):
        verify_files(small, BOTH, store=heavy_store, base=small)


def test_the_command_takes_the_base_model(small, base, heavy_store, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: own\n"
        "categories: {alcohol: {masks: [spirits]}, weapons: {masks: [blades]}}\n"
    )
    asked = ["verify", str(small), "--policy", str(tmp_path / "own.yaml"), "--store", str(heavy_store)]
    refused = CliRunner().invoke(main, asked)
    assert (refused.exit_code, "Name the base model" in refused.stderr) == (1, True)
    done = CliRunner().invoke(main, [*asked, "--base", str(base), "--json"], catch_exceptions=False)
    assert (done.exit_code, json.loads(done.stdout)["state"]) == (0, "GUARDED")
    changed(small, one_bit)
    done = CliRunner().invoke(main, [*asked, "--base", str(base)], catch_exceptions=False)
    assert (done.exit_code, "DEGRADED" in done.stdout) == (1, True)
