"""Masks in a real model: written on both sides, by fill, all or nothing, and taken out again bit for bit."""

import copy

import pytest
import torch

from safeflux.errors import ApplyError, MaskMismatchError, ModelError
from safeflux.families.sites import find_sites, spans
from safeflux.masks.mask_set import MaskSet, compose, keep_all
from safeflux.model.apply import apply_masks_
from tests.helpers.models import MATRICES, NEURONS


def identity_of(model):
    """What must not change about a model's tensors: the objects, where they lie, and what they are."""
    return {name: (id(p), p.data_ptr(), p.dtype, p.device, p.stride()) for name, p in model.named_parameters()}


def zero_by_hand(model, masks):
    """The same masking, spelled out module by module and by assignment: independent of the tables in families/."""
    for name, mask in masks.items():
        fqn, kind = name.split(":")
        module = model.get_submodule(fqn)
        with torch.no_grad():
            if kind == "ff":
                module.net[0].proj.weight[~mask] = 0
                module.net[0].proj.bias[~mask] = 0
                module.net[2].weight[:, ~mask] = 0
            elif kind == "mlp":
                module.proj_mlp.weight[~mask] = 0
                module.proj_mlp.bias[~mask] = 0
                module.proj_out.weight[:, -mask.size :][:, ~mask] = 0
            elif kind == "norm":
                module.linear.weight[~mask] = 0
                module.linear.bias[~mask] = 0
            else:
                module.weight[~mask] = 0


@pytest.mark.parametrize("kinds", [("ff",), ("mlp",), ("norm",), MATRICES, (*NEURONS, *MATRICES)])
def test_a_masked_forward_equals_one_with_hand_zeroed_weights(transformer, forward, make_masks, bits_of, kinds):
    before, by_hand = forward(transformer), copy.deepcopy(transformer)
    masks = make_masks(3, kinds)
    zero_by_hand(by_hand, masks)
    apply_masks_(transformer, masks)
    assert bits_of(transformer) == bits_of(by_hand)
    assert torch.equal(forward(transformer), forward(by_hand))
    assert not torch.equal(forward(transformer), before)


@pytest.mark.parametrize("kind", ["ff", "mlp"])
def test_both_sides_of_a_masked_neuron_are_dead(transformer, forward, make_masks, kind):
    masks = make_masks(4, (kind,))
    apply_masks_(transformer, masks)
    masked = forward(transformer)
    for revive in ("in", "out"):
        revived = copy.deepcopy(transformer)
        for name, mask in masks.items():
            module = revived.get_submodule(name.split(":")[0])
            first, last = (module.net[0].proj, module.net[2]) if kind == "ff" else (module.proj_mlp, module.proj_out)
            with torch.no_grad():
                if revive == "in":
                    first.weight[~mask], first.bias[~mask] = 1.0, 1.0
                else:
                    last.weight[:, -mask.size :][:, ~mask] = 1.0
        torch.testing.assert_close(forward(revived), masked)


def test_nothing_but_zeros_stays_on_the_model(transformer, make_masks):
    before, classes = identity_of(transformer), [type(m) for m in transformer.modules()]
    attributes = [set(vars(m)) for m in transformer.modules()]
    buffers = len(list(transformer.buffers()))
    apply_masks_(transformer, make_masks(5))
    assert identity_of(transformer) == before
    assert [type(m) for m in transformer.modules()] == classes
    assert [set(vars(m)) for m in transformer.modules()] == attributes
    assert len(list(transformer.buffers())) == buffers
    for module in transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert all(p.requires_grad and p.grad is None for p in transformer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.filterwarnings("ignore")
def test_undo_restores_every_bit(transformer, make_masks, bits_of, dtype):
    transformer.to(dtype)
    before, where = bits_of(transformer), identity_of(transformer)
    undo = apply_masks_(transformer, make_masks(6))
    assert bits_of(transformer) != before
    assert not undo.is_done
    undo.restore_()
    assert undo.is_done
    assert bits_of(transformer) == before
    assert identity_of(transformer) == where
    undo.restore_()
    assert bits_of(transformer) == before


def test_values_that_are_not_finite_are_filled_and_restored(transformer, make_masks, bits_of):
    masks = make_masks(7)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    with torch.no_grad():
        for name, mask in masks.items():
            fqn, kind = name.split(":")
            if kind in MATRICES:
                weight = transformer.get_submodule(fqn).weight
                weight[~mask] = special.repeat(weight.numel())[: int((~mask).sum())]
    before = bits_of(transformer)
    undo = apply_masks_(transformer, masks)
    assert all(p.isfinite().all() for p in transformer.parameters())
    undo.restore_()
    assert bits_of(transformer) == before


def test_only_what_is_overwritten_is_saved(transformer):
    mask = torch.ones(128, dtype=torch.bool)
    mask[5] = False
    undo = apply_masks_(transformer, MaskSet({"transformer_blocks.0.ff:ff": mask}))
    assert undo.num_bytes_saved == 4 * (32 + 1 + 32)


def test_as_context_manager_it_restores_even_after_an_error(transformer, make_masks, bits_of):
    before = bits_of(transformer)

    def draw_and_fail():
        with apply_masks_(transformer, make_masks(8)):
            assert bits_of(transformer) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert bits_of(transformer) == before


def test_masks_on_masks_compose_and_undo_last_first(transformer, make_masks, bits_of):
    a, b = make_masks(9), make_masks(10)
    together = copy.deepcopy(transformer)
    apply_masks_(together, compose(a, b))
    start = bits_of(transformer)
    first = apply_masks_(transformer, a)
    middle = bits_of(transformer)
    second = apply_masks_(transformer, b)
    assert bits_of(transformer) == bits_of(together)
    second.restore_()
    assert bits_of(transformer) == middle
    first.restore_()
    assert bits_of(transformer) == start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swap_is_undo_and_apply_at_once(transformer, make_masks, bits_of, dtype):
    transformer.to(dtype)
    before, old, new = bits_of(transformer), make_masks(11), make_masks(12, share=0.2)
    with apply_masks_(transformer, new):
        expected = bits_of(transformer)
    first = apply_masks_(transformer, old)
    second = first.swap_(new)
    assert bits_of(transformer) == expected
    assert first.is_done
    assert not second.faults()
    second.restore_()
    assert bits_of(transformer) == before


def test_a_swap_leaves_tensors_alone_that_both_mask_alike(transformer, make_masks):
    weights, neurons = make_masks(1, MATRICES), make_masks(2, ("ff", "mlp"))
    undo = apply_masks_(transformer, compose(weights, neurons))
    versions = {name: p._version for name, p in transformer.named_parameters()}
    undo.swap_(weights)
    written = {name for name, p in transformer.named_parameters() if p._version != versions[name]}
    touched = {span.tensor for name in neurons for span in spans(find_sites(transformer)[name])}
    assert written == touched
    assert touched < versions.keys()


def test_a_swap_of_a_model_that_was_changed_since_is_refused(transformer, make_masks, bits_of):
    undo = apply_masks_(transformer, make_masks(11))
    name = next(name for name in make_masks(11) if name.endswith(":weight")).removesuffix(":weight")
    with torch.no_grad():
        transformer.get_parameter(name + ".weight").fill_(1.0)
    changed = bits_of(transformer)
    with pytest.raises(ApplyError, match="cannot swap"):
        undo.swap_(make_masks(12))
    assert bits_of(transformer) == changed


def test_inference_mode_makes_no_difference(transformer, make_masks, bits_of):
    before = bits_of(transformer)
    with torch.inference_mode():
        undo = apply_masks_(transformer, make_masks(12))
    assert bits_of(transformer) != before
    undo.restore_()
    assert bits_of(transformer) == before


def test_two_names_for_one_tensor_are_both_masked_and_restored(transformer, forward, bits_of):
    blocks = transformer.transformer_blocks
    blocks[1].ff.net[0].proj.weight = blocks[0].ff.net[0].proj.weight
    before = bits_of(transformer)
    masks = {}
    for n, neuron in ((0, 3), (1, 4)):
        masks[f"transformer_blocks.{n}.ff:ff"] = torch.arange(128) != neuron
    undo = apply_masks_(transformer, MaskSet(masks))
    assert not blocks[0].ff.net[0].proj.weight[3:5].any()
    undo.restore_()
    assert bits_of(transformer) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.to("meta"), "meta device.*load, guard, then"),
        (lambda m: setattr(m, "context_embedder", torch.nn.Linear(24, 32, device="meta")), "context_embedder.weight"),
        (lambda m: setattr(m.context_embedder, "weight", whole_numbers(32, 24)), "int8.*guard, then quantise"),
        (lambda m: setattr(m.context_embedder, "weight", Packed(torch.randn(32, 24))), "Packed.*guard, then quantise"),
        (lambda m: setattr(m.context_embedder, "weight", one_row_for_all(32, 24)), r"share memory.*clone\(\)"),
    ],
    ids=["all offloaded", "one offloaded", "int8", "subclass", "expanded"],
)
def test_weights_that_cannot_be_written_are_refused_before_any_write(transformer, make_masks, spoil, message):
    spoil(transformer)
    versions = {name: p._version for name, p in transformer.named_parameters()}
    with pytest.raises(ModelError, match=message):
        apply_masks_(transformer, make_masks(13))
    assert {name: p._version for name, p in transformer.named_parameters()} == versions


def whole_numbers(*shape):
    """How 8-bit quantisers keep their weights."""
    return torch.nn.Parameter(torch.ones(*shape, dtype=torch.int8), requires_grad=False)


def one_row_for_all(rows, columns):
    return torch.nn.Parameter(torch.randn(1, columns).expand(rows, columns))


class Packed(torch.nn.Parameter):
    """How 4-bit and GGUF quantisers keep theirs: a parameter class of their own."""


def test_masks_for_another_model_are_refused_before_any_write(transformer, make_masks, bits_of):
    before = bits_of(transformer)
    with pytest.raises(MaskMismatchError, match="empty mask set"):
        apply_masks_(transformer, MaskSet({}))
    unknown = MaskSet({**make_masks(1), "transformer_blocks.9.ff:ff": torch.zeros(128, dtype=torch.bool)})
    with pytest.raises(MaskMismatchError, match="no such site"):
        apply_masks_(transformer, unknown)
    assert bits_of(transformer) == before


def test_masks_that_keep_everything_write_nothing(transformer, bits_of):
    before = bits_of(transformer)
    undo = apply_masks_(transformer, keep_all(find_sites(transformer).values()))
    assert bits_of(transformer) == before
    assert undo.is_done


def test_in_force_is_read_from_the_model(transformer, make_masks):
    masks = make_masks(14)
    undo = apply_masks_(transformer, masks)
    assert undo.in_force() == masks
    site = "transformer_blocks.0.ff:ff"
    neuron = int(masks.bits[site].off()[0])
    with torch.no_grad():
        transformer.transformer_blocks[0].ff.net[0].proj.bias[neuron] = 1e-30
    expected = masks[site]
    expected[neuron] = True
    assert undo.in_force() == MaskSet({**masks, site: expected})
    transformer.context_embedder.to("meta")
    assert undo.in_force()["context_embedder:weight"].all()


def test_undo_never_puts_old_weights_among_new_ones(transformer, other_transformer, make_masks, bits_of):
    undo = apply_masks_(transformer, make_masks(15))
    transformer.load_state_dict(other_transformer.state_dict())
    with pytest.raises(ApplyError, match="nothing was written"):
        undo.restore_()
    assert bits_of(transformer) == bits_of(other_transformer)


@pytest.mark.filterwarnings("ignore")
def test_undo_is_refused_after_a_cast(transformer, make_masks, bits_of):
    undo = apply_masks_(transformer, make_masks(16))
    transformer.to(torch.bfloat16)
    assert not undo.faults()
    masked = bits_of(transformer)
    with pytest.raises(ApplyError, match=r"cast from torch.float32 to torch.bfloat16"):
        undo.restore_()
    assert bits_of(transformer) == masked
