"""Changes that no mask covers: the secret sample finds them in any layer, and takes no cast for one."""

import json

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from safeflux.families.fingerprint import sampled
from safeflux.model.guard import guard
from safeflux.model.record import record_of
from safeflux.model.watch.sample import Sample
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from tests.helpers.lora import QUIET, UNMASKED, lora
from tests.helpers.policies import BOTH

pytestmark = QUIET
CPU = torch.device("cpu")


def merge(weight, share, generator):
    """Add a random matrix of rank 8, of a size relative to the weight's."""
    rows, columns = weight.shape
    change = torch.randn(rows, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    weight.data += (share * weight.data.float().norm() / change.norm() * change).to(weight.dtype)


def layer_of(transformer, name):
    """A weight's layer and its name there: a sample of it alone takes a hundredth of the time."""
    path, _, leaf = name.rpartition(".")
    return transformer.get_submodule(path), leaf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_per_cent_in_any_one_matrix_is_found_in_99_of_100_draws(transformer, dtype):
    transformer.to(dtype)
    generator = torch.Generator().manual_seed(0)
    matrices = [name for name, parameter in transformer.named_parameters() if parameter.dim() == 2]
    found = 0
    for turn in range(100):
        name = matrices[turn % len(matrices)]
        layer, leaf = layer_of(transformer, name) if turn % 10 else (transformer, name)
        weight = layer.get_parameter(leaf)
        sample, before = Sample(layer), weight.data.clone()
        merge(weight, 0.01, generator)
        found += sample.compare(layer).changed == (leaf,)
        weight.data = before
        assert not sample.compare(layer).changed
    assert found >= 99


def beside_the_fingerprint(rows, columns, public):
    """All rows but those that the public fingerprint samples, so that it stays as it is."""
    return [row for row in range(rows) if row not in set((public // columns).tolist())], range(columns)


def eight_rows(rows, columns, public):
    return range(rows - 8, rows), range(columns)


def two_rows(rows, columns, public):
    return [0, rows // 2], range(columns)


def eight_columns(rows, columns, public):
    return range(rows), range(8)


CRAFTED = [beside_the_fingerprint, eight_rows, two_rows, eight_columns]


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_a_change_that_was_crafted_by_who_knows_the_code_is_found_as_often(transformer, craft):
    """Rank 8, 1 % of the matrix in size, where the code looks least."""
    transformer.to(torch.bfloat16)
    before_all = fingerprint(transformer)
    generator = torch.Generator().manual_seed(0)
    matrices = [name for name, p in transformer.named_parameters() if p.dim() == 2 and p.shape[0] > 64]
    assert len(matrices) > 10
    found = 0
    for turn in range(100):
        name = matrices[turn % len(matrices)]
        layer, leaf = layer_of(transformer, name)
        weight = layer.get_parameter(leaf)
        sample, before = Sample(layer), weight.data.clone()
        public, _ = sampled(name, weight.numel())
        where = torch.zeros_like(weight.data)
        rows, columns = craft(*weight.shape, public)
        where[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1
        change = where * (
            torch.randn(len(where), 8, generator=generator) @ torch.randn(8, where.shape[1], generator=generator)
        )
        weight.data += (0.01 * before.float().norm() / change.norm() * change).to(weight.dtype)
        if craft is beside_the_fingerprint and turn < 5:
            assert fingerprint(transformer) == before_all
        found += sample.compare(layer).changed == (leaf,)
        weight.data = before
    assert found >= 99


def test_one_changed_row_or_column_is_always_found_and_one_changed_bias(transformer):
    tall, wide = "single_transformer_blocks.1.proj_mlp.weight", "single_transformer_blocks.1.proj_out.weight"
    shapes = [transformer.get_parameter(name).shape for name in (tall, wide)]
    assert shapes[0][0] > 2 * shapes[0][1]
    assert shapes[1][1] > 2 * shapes[1][0]
    for name in (tall, wide, "transformer_blocks.0.attn.to_q.bias"):
        layer, leaf = layer_of(transformer, name)
        weight = layer.get_parameter(leaf).data
        for line in range(32):
            for changed in (weight[line], weight[..., line]):
                sample = Sample(layer)
                changed += 0.01
                assert sample.compare(layer).changed == (leaf,)


def test_a_block_is_found_as_often_as_its_share_allows():
    """Of r rows and c columns of a square matrix of n: 1 - exp(-r c / n), here 63 %."""
    layer = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False)).requires_grad_(False)
    found = 0
    for _ in range(200):
        sample = Sample(layer)
        layer[0].weight[3:19, 7:23] += 0.01
        found += bool(sample.compare(layer).changed)
    assert 100 < found < 153  # 3.6 standard deviations


def test_each_guard_draws_anew_and_writes_the_sample_down_nowhere(transformer, store):
    drawn = []
    for _ in range(2):
        with guard(transformer, BOTH, store=store) as handle:
            sample = record_of(transformer).sample
            drawn.append(sample._places)
            receipt = json.dumps(handle.receipt())
            assert str(sample._places[:3].tolist())[1:-1] not in receipt
            assert "sample" not in receipt
            assert len(repr(sample)) < 200
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("steps", [
    (torch.bfloat16,), (torch.float16,), (torch.bfloat16, torch.float32), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float8_e4m3fn), (torch.float8_e5m2,),
], ids=str)  # fmt: skip
def test_casts_are_no_changes_and_hide_none(transformer, steps):
    sample = Sample(transformer)
    generator = torch.Generator().manual_seed(0)

    def cast():
        for parameter in transformer.parameters():
            for dtype in steps:
                parameter.data = parameter.data.to(dtype)

    cast()
    assert not sample.compare(transformer).changed
    sample_of_cast = Sample(transformer)
    name = "single_transformer_blocks.1.proj_mlp.weight"
    weight = transformer.get_parameter(name)
    changed = weight.data.float()
    holder = torch.nn.Parameter(changed)
    merge(holder, 0.2 if steps[-1].itemsize == 1 else 0.01, generator)
    weight.data = holder.data.to(weight.dtype)
    assert sample.compare(transformer).changed == sample_of_cast.compare(transformer).changed == (name,)


def fuse_and_unload(model):
    torch.manual_seed(0)
    model.add_adapter(lora(UNMASKED))
    model.fuse_lora()
    model.unload_lora()


def to_cpu_offload(model, folder):
    cpu_offload(model, execution_device=CPU)


def to_disk(model, folder):
    apply_group_offloading(
        model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level", offload_to_disk_path=str(folder)
    )


def to_int8(model, folder):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def to_quanto(model, folder):
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)


HELD = pytest.mark.parametrize("hold", [to_cpu_offload, to_disk, to_int8, to_quanto], ids=lambda hold: hold.__name__)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@HELD
def test_a_merged_adapter_is_found_wherever_the_weights_are_held_then(transformer, store, hold, tmp_path):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    fuse_and_unload(transformer)
    hold(transformer, tmp_path / "offload")
    for deep in (False, True):
        found = handle.verify(deep=deep)
        assert found.state is State.DEGRADED
        assert "not masked have changed" in found.faults[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@HELD
def test_the_same_without_an_adapter_is_guarded(transformer, store, hold, tmp_path, forward):
    handle = guard(transformer, BOTH, store=store)
    hold(transformer, tmp_path / "offload")
    found = handle.verify(deep=True)
    assert found.ok, found
    assert forward(transformer).isfinite().all()
    assert handle.verify(deep=True).ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("hold", [to_int8, to_quanto], ids=lambda hold: hold.__name__)
def test_one_per_cent_is_found_behind_eight_bits_too(store, hold):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(20):
        model = torch.nn.Sequential(torch.nn.Linear(512, 512, bias=False))
        torch.nn.init.normal_(model[0].weight)
        sample = Sample(model)
        merge(model[0].weight, 0.01, generator)
        hold(model, None)
        found += sample.compare(model).changed == ("0.weight",)
    assert found >= 19
