"""`fuse_qkv_projections` copies q, k and v into one matrix that forward reads: the guard reads it too."""

import copy

import pytest
import torch

from safeflux.errors import ModelError
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.lora import ALLOW, allowing
from tests.helpers.policies import BLADES, BOTH, SPIRITS

pytestmark = pytest.mark.filterwarnings("ignore:`fuse_qkv")


@torch.no_grad()
def test_a_fused_model_stays_guarded_and_is_not_written_to(transformer, base_transformer, store, forward, bits_of):
    handle = guard(transformer, ALLOW, store=store)
    masked, drawn = bits_of(transformer), forward(transformer)
    transformer.fuse_qkv_projections()
    assert torch.allclose(forward(transformer), drawn, atol=1e-5)
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    for write in (
        handle.undo,
        handle.refresh,
        lambda: handle.swap(allowing(BLADES), store=store),
        lambda: guard(transformer, allowing(SPIRITS), store=store),
    ):
        with pytest.raises(ModelError, match=r"reads a copy of it.*unfuse_qkv_projections\(\)`, guard, swap"):
            write()
    assert handle.verify(deep=True).ok
    transformer.unfuse_qkv_projections()
    assert bits_of(transformer) == masked
    assert handle.verify(deep=True).ok
    handle.undo()
    assert bits_of(transformer) == bits_of(base_transformer)


@torch.no_grad()
@pytest.mark.parametrize("policy", [BOTH, ALLOW], ids=["deny", "allow"])
def test_the_fused_matrix_is_what_is_read(transformer, store, policy):
    handle = guard(transformer, policy, store=store)
    transformer.fuse_qkv_projections()
    assert handle.verify(deep=True).ok
    fused = transformer.transformer_blocks[1].attn.to_added_qkv.weight
    fused += 1
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert any("add_q_proj.weight' is not zero" in fault for fault in found.faults)
    assert not any(amount.in_force for name, amount in handle.status.sites.items() if "blocks.1.attn.add_q" in name)
    transformer.unfuse_qkv_projections()
    assert handle.verify(deep=True).ok


@torch.no_grad()
def test_a_fused_matrix_without_masks_is_compared_too(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    transformer.fuse_qkv_projections()
    transformer.transformer_blocks[0].attn.to_qkv.weight *= 1.01
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert "attn.to_q.weight" in found.faults[0]


@torch.no_grad()
@pytest.mark.parametrize("dry_run", [True, False])
def test_fused_before_the_guard_is_refused_with_the_order_that_works(transformer, store, make_masks, bits_of, dry_run):
    before = bits_of(transformer)
    transformer.fuse_qkv_projections()
    with pytest.raises(ModelError, match=r"unfuse_qkv_projections\(\)`, guard"):
        guard(transformer, BOTH, store=store, dry_run=dry_run)
    with pytest.raises(ModelError, match="reads a copy of it"):
        apply_masks_(transformer, make_masks(1))
    transformer.unfuse_qkv_projections()
    assert bits_of(transformer) == before


@torch.no_grad()
def test_flux2_alike(flux2_transformer):
    model = flux2_transformer
    sites = find_sites(model)
    draw = torch.Generator().manual_seed(0)
    masks = MaskSet({name: torch.rand(site.shape, generator=draw) >= 0.1 for name, site in sites.items()})
    base = copy.deepcopy(model.state_dict())
    undo = apply_masks_(model, masks)
    model.fuse_qkv_projections()
    assert not undo.faults()
    model.transformer_blocks[0].attn.to_added_qkv.weight += 1
    assert {fault.tensor.rpartition(".attn.")[2] for fault in undo.faults()} == {
        f"add_{part}_proj.weight" for part in "qkv"
    }
    model.unfuse_qkv_projections()
    assert not undo.faults()
    undo.restore_()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
