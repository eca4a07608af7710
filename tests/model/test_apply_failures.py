"""A write that fails, at any moment of applying, undoing or swapping masks, leaves the weights as they were."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_


class FailAt(TorchDispatchMode):
    """Raises at the n-th write to a model's memory, once: what comes after, such as putting back, works."""

    def __init__(self, model, n, error):
        super().__init__()
        self.memory = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.n, self.error, self.count = n, error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable and args[0].untyped_storage().data_ptr() in self.memory:
            self.count += 1
            if self.count == self.n:
                raise self.error
        return func(*args, **(kwargs or {}))


def count_writes(model, masks):
    with FailAt(model, 0, RuntimeError()) as mode:
        undo = apply_masks_(model, masks)
    undo.restore_()
    return mode.count


@pytest.mark.parametrize("error", [RuntimeError("no memory left"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_at_any_write_leaves_the_model_as_it_was(transformer, make_masks, bits_of, error):
    masks, before = make_masks(11), bits_of(transformer)
    num_writes = count_writes(transformer, masks)
    assert num_writes == 6 * 3 + 2 * 2 + 13 + 28  # every tensor of every ff and mlp, norm, weight and image site
    for n in range(1, num_writes + 1):
        expected = ApplyError if isinstance(error, RuntimeError) else KeyboardInterrupt
        with pytest.raises(expected), FailAt(transformer, n, error):
            apply_masks_(transformer, masks)
        assert bits_of(transformer) == before, f"write {n} of {num_writes}"


def test_a_failure_at_any_write_of_undo_leaves_the_model_masked(transformer, make_masks, bits_of):
    masks, before = make_masks(11), bits_of(transformer)
    num_writes = count_writes(transformer, masks)
    undo = apply_masks_(transformer, masks)
    masked = bits_of(transformer)
    for n in range(1, num_writes + 1):
        with (
            pytest.raises(ApplyError, match="every weight is as it was"),
            FailAt(transformer, n, RuntimeError("no memory left")),
        ):
            undo.restore_()
        assert bits_of(transformer) == masked, f"write {n} of {num_writes}"
    undo.restore_()
    assert bits_of(transformer) == before


def test_a_failure_at_any_write_of_a_swap_leaves_the_old_masks(transformer, make_masks, bits_of):
    before = bits_of(transformer)
    whole = (make_masks(seed) for seed in (11, 12))
    old, new = (MaskSet({name: masks[name] for name in masks if "blocks.0" in name}) for masks in whole)
    undo = apply_masks_(transformer, old)
    masked = bits_of(transformer)
    with FailAt(transformer, 0, RuntimeError()) as mode:
        swapped = undo.swap_(new)
    undo = swapped.swap_(old)
    assert bits_of(transformer) == masked
    for n in range(1, mode.count + 1):
        with (
            pytest.raises(ApplyError, match="every weight is as it was"),
            FailAt(transformer, n, RuntimeError("no memory left")),
        ):
            undo.swap_(new)
        assert bits_of(transformer) == masked, f"write {n} of {mode.count}"
    undo.restore_()
    assert bits_of(transformer) == before
