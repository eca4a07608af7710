"""`verify(base=...)`: every element is compared with the base model's files, so that no small change is missed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeflux.checkpoints.numbers import Numbers
from safeflux.errors import ModelError
from safeflux.model.forward_values import Values
from safeflux.model.guard import guard
from safeflux.model.record import record_of
from safeflux.model.watch.base_files import compare_whole
from safeflux.plan.status import State
from tests.helpers.layouts import to_bfl
from tests.helpers.lora import ALLOW, QUIET, UNMASKED, lora
from tests.helpers.policies import BOTH

pytestmark = QUIET


@pytest.fixture(scope="module")
def base(base_transformer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base_transformer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bfl_base(base_transformer, tmp_path_factory):
    file = tmp_path_factory.mktemp("bfl") / "flux.safetensors"
    save_file(to_bfl(base_transformer), file)
    return file


def change_block(weight, generator):
    """Rank 8, 8 x 8, 1 % of the matrix in size, anywhere in it."""
    rows, columns = (int(torch.randint(size - 7, (), generator=generator)) for size in weight.shape)
    change = torch.randn(8, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    weight.data[rows : rows + 8, columns : columns + 8] += 0.01 * weight.norm() / change.norm() * change


def test_a_small_block_that_was_crafted_is_found_100_times_of_100(transformer, store, base):
    generator = torch.Generator().manual_seed(0)
    handle = guard(transformer, BOTH, store=store)
    masked = {name for name, _, _ in record_of(transformer).entries[0].undo.places()}
    matrices = [name for name, p in transformer.named_parameters() if p.dim() == 2 and min(p.shape) >= 8]
    unmasked = [name for name in matrices if name not in masked]
    assert len(unmasked) > 10
    files, record, found = Numbers.open(base), record_of(transformer), 0
    for turn in range(100):
        name = unmasked[turn % len(unmasked)]
        weight = transformer.get_parameter(name)
        before = weight.data.clone()
        change_block(weight, generator)
        found += compare_whole(files, record, Values(transformer), rounded=False).changed == (name,)
        weight.data.copy_(before)
    assert found == 100
    assert handle.verify(base=base).ok


def test_what_it_found_stays_a_fault_until_a_comparison_finds_it_no_more(transformer, store, base):
    handle = guard(transformer, BOTH, store=store)
    weight = transformer.get_parameter("transformer_blocks.0.attn.to_out.0.weight")
    before = weight.data.clone()
    weight.data[3, 5] += 0.01
    found = handle.verify(base=base)
    assert found.state is State.DEGRADED
    assert "are not those of the base model's files (transformer_blocks.0.attn.to_out.0.weight" in found.faults[-1]
    assert handle.verify().faults[-1] == handle.verify(deep=True).faults[-1] == found.faults[-1]
    weight.data.copy_(before)
    assert not handle.verify(deep=True).ok
    assert handle.verify(base=base).ok
    assert handle.verify().ok


def test_what_was_changed_before_the_guard_beside_the_fingerprint_is_found(transformer, store, base):
    transformer.get_parameter("proj_out.weight").data[1, 1] += 0.001
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify(deep=True).ok
    assert "proj_out.weight" in handle.verify(base=base).faults[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_unchanged_model_is_guarded_in_any_layout_and_type(transformer, store, base, bfl_base, dtype):
    transformer.to(dtype)
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify(base=base).ok
    assert handle.verify(base=bfl_base).ok
    transformer.fuse_qkv_projections()
    assert handle.verify(base=bfl_base).ok
    transformer.transformer_blocks[0].attn.to_added_qkv.weight.data[0, 0] += 1
    assert not handle.verify(base=bfl_base).ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("change", "is_ok"), [(0.0, True), (0.5, False)])
def test_a_packed_model_is_compared_within_half_a_step(transformer, store, base, change, is_ok):
    quantization = pytest.importorskip("torchao.quantization")
    handle = guard(transformer, BOTH, store=store)
    transformer.get_parameter("transformer_blocks.0.attn.to_out.0.weight").data[3, 5] += change
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig())
    assert handle.verify(base=base).ok is is_ok


def test_what_cannot_be_compared_with_is_refused(transformer, other_transformer, store, base, tmp_path):
    handle = guard(transformer, BOTH, store=store)
    other_transformer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="is another model than the guarded one's base"):
        handle.verify(base=tmp_path / "other")
    with pytest.raises(ModelError, match="does not exist"):
        handle.verify(base=tmp_path / "nothing")
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    save_file({**weights, "proj_out.weight_scale": torch.ones(1)}, tmp_path / "scaled.safetensors")
    with pytest.raises(ModelError, match=r"weight_scale.* packed or scaled, which rounds; name the files"):
        handle.verify(base=tmp_path / "scaled.safetensors")
    assert handle.verify().ok
    handle.undo()
    with guard(transformer, ALLOW, store=store) as free, pytest.raises(ModelError, match="lets any adapter in"):
        free.verify(base=base)
    compacted = guard(transformer, BOTH, store=store, compact=True)
    with pytest.raises(ModelError, match=r"cut out of this model .* safeflux verify FOLDER --base MODEL"):
        compacted.verify(base=base)


def test_an_adapter_that_was_fused_and_unloaded_is_found(transformer, store, base):
    handle = guard(transformer, BOTH, store=store)
    transformer.add_adapter(lora(UNMASKED))
    transformer.fuse_lora()
    transformer.unload_lora()
    assert handle.verify(base=base).state is State.DEGRADED
