"""Guarded models, then offloaded, quantised, cast or sharded by the real libraries: the guard holds, and says so."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting

from safeflux.errors import ApplyError, ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.policies import BLADES, BOTH

CPU = torch.device("cpu")


def group_offload(transformer, folder=None, kind="leaf_level"):
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(
        transformer, onload_device=CPU, offload_device=CPU, offload_type=kind, offload_to_disk_path=folder, **options
    )


def test_model_offload_moves_weights_and_keeps_them(transformer, store, forward):
    handle = guard(transformer, BOTH, store=store)
    before = forward(transformer)
    _, hook = cpu_offload_with_hook(transformer, execution_device=CPU)
    assert torch.equal(forward(transformer), before)
    hook.offload()
    assert handle.verify(deep=True).ok


@pytest.mark.filterwarnings("ignore:There are modules")  # diffusers, of the VAE and the like
def test_a_pipeline_that_offloads_models_is_guarded_like_any_other(pipe, store, forward, bits_of):
    plain, before = bits_of(pipe.transformer), forward(pipe.transformer)
    pipe.enable_model_cpu_offload(device="cpu")
    handle = guard(pipe, BOTH, store=store)
    drawn = forward(pipe.transformer)
    assert not torch.equal(drawn, before)
    pipe.maybe_free_model_hooks()
    assert handle.verify(deep=True).ok
    assert torch.equal(forward(pipe.transformer), drawn)
    handle.undo()
    assert bits_of(pipe.transformer) == plain


def test_on_a_device_without_values_nothing_can_be_told(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    transformer.to("meta")
    found = handle.verify()
    assert found.state is State.STALE
    assert "holds no values now" in found.faults[0]
    with pytest.raises(ApplyError, match="cannot undo"):
        handle.undo()


def test_sequential_offload_is_read_where_it_keeps_the_weights(transformer, store, forward):
    offloaded = cpu_offload(copy.deepcopy(transformer), execution_device=CPU)
    with pytest.raises(ModelError, match=r"meta device.*load, guard, then enable sequential"):
        guard(offloaded, BOTH, store=store)
    handle = guard(transformer, BOTH, store=store)
    before = forward(transformer)
    cpu_offload(transformer, execution_device=CPU)
    assert transformer.context_embedder.weight.is_meta
    assert torch.equal(forward(transformer), before)
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    assert handle.receipt()["held"].keys() == {"offload map"}
    hook = transformer.context_embedder._hf_hook
    own, held = hook.weights_map, hook.weights_map["weight"]
    hook.weights_map = {"weight": held + 1, "bias": own["bias"]}
    assert handle.verify().state is State.DEGRADED
    hook.weights_map = own
    assert handle.verify().ok
    held += 1
    assert handle.verify(deep=True).state is State.DEGRADED
    with pytest.raises(ApplyError, match="cannot undo"):
        handle.undo()


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_works_before_and_after(transformer, store, forward, kind):
    offloaded = copy.deepcopy(transformer)
    group_offload(offloaded, kind=kind)
    handles = guard(offloaded, BOTH, store=store), guard(transformer, BOTH, store=store)
    before = forward(transformer)
    group_offload(transformer, kind=kind)
    for handle, model in zip(handles, (offloaded, transformer), strict=True):
        assert torch.equal(forward(model), before)
        assert handle.verify(deep=True).ok


def test_group_offload_to_an_empty_folder_is_read_from_its_files(transformer, store, forward, tmp_path):
    handle = guard(transformer, BOTH, store=store)
    before = forward(transformer)
    group_offload(transformer, str(tmp_path / "offload"))
    assert handle.verify(deep=True).ok
    assert torch.equal(forward(transformer), before)
    assert handle.verify(deep=True).ok
    assert handle.receipt()["held"].keys() == {"disk"}
    for write in (handle.undo, handle.refresh, lambda: handle.swap(BLADES, store=store)):
        with pytest.raises(ModelError, match="the weights are offloaded to"):
            write()
    assert torch.equal(forward(transformer), before)
    assert handle.verify(deep=True).ok


def test_group_offload_to_a_used_folder_brings_the_old_weights_back_and_is_found(
    transformer, base_transformer, store, forward, tmp_path
):
    plain = copy.deepcopy(base_transformer)
    group_offload(plain, str(tmp_path))
    handle = guard(transformer, BOTH, store=store)
    group_offload(transformer, str(tmp_path))
    assert torch.equal(forward(transformer), forward(plain))  # nothing of the guard is left, and nobody is told
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert "is not zero" in found.faults[0]


def test_a_model_offloaded_to_disk_is_refused_before_any_write(transformer, store, tmp_path):
    group_offload(transformer, str(tmp_path))
    with pytest.raises(ModelError, match=r"offloaded to .*group_\w+.safetensors.*load, guard, then"):
        guard(transformer, BOTH, store=store)


@pytest.mark.filterwarnings("ignore:There are modules")
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_layerwise_casting_keeps_the_zeros(transformer, store, forward, storage):
    cast = copy.deepcopy(transformer)
    apply_layerwise_casting(cast, storage_dtype=storage, compute_dtype=torch.float32)
    assert guard(cast, BOTH, store=store).verify(deep=True).ok
    handle = guard(transformer, BOTH, store=store)
    apply_layerwise_casting(transformer, storage_dtype=storage, compute_dtype=torch.float32)
    assert transformer.context_embedder.weight.dtype is storage
    for _ in range(2):
        assert handle.verify(deep=True).ok
        assert torch.equal(forward(transformer), forward(cast))


def torchao_packer(bits):
    quantization = pytest.importorskip("torchao.quantization")
    config = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}[bits]
    return lambda model: quantization.quantize_(model, getattr(quantization, config)())


def quanto_packer(bits):
    quanto = pytest.importorskip("optimum.quanto")

    def pack(model):
        quanto.quantize(model, weights={"int8": quanto.qint8, "float8": quanto.qfloat8}[bits])
        quanto.freeze(model)

    return pack


PACKERS = {"torchao": torchao_packer, "quanto": quanto_packer}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # on import
class TestQuantised:
    """Weights packed after the guard are read through their library; before it they are refused."""

    @pytest.mark.parametrize("bits", ["int8", "float8"])
    @pytest.mark.parametrize("library", ["torchao", "quanto"])
    def test_before_the_guard_it_is_refused_and_after_it_every_write_is(self, transformer, store, library, bits):
        pack = PACKERS[library](bits)
        packed = copy.deepcopy(transformer)
        pack(packed)
        with pytest.raises(ModelError, match=r"Tensor of .*load, guard, then quantise"):
            guard(packed, BOTH, store=store)
        handle = guard(transformer, BOTH, store=store)
        pack(transformer)
        states = [handle.verify().state, handle.verify().state, handle.verify(deep=True).state]
        assert states == [State.GUARDED if bits == "int8" else State.DEGRADED] * 3
        for write in (handle.undo, handle.refresh, lambda: handle.swap(BLADES, store=store)):
            with pytest.raises((ApplyError, ModelError), match=r"quantise|no numbers"):
                write()
        assert handle.verify(deep=True).state is states[0]

    def test_torchao_int8(self, transformer, store, forward):
        quantization = pytest.importorskip("torchao.quantization")
        packed = copy.deepcopy(transformer)
        quantization.quantize_(packed, quantization.Int8WeightOnlyConfig())
        with pytest.raises(ModelError, match=r"got Int8Tensor.*load, guard, then quantise"):
            guard(packed, BOTH, store=store)
        handle = guard(transformer, BOTH, store=store)
        quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig())
        assert handle.verify().ok
        assert handle.verify(deep=True).ok
        assert forward(transformer).isfinite().all()
        assert handle.receipt()["held"].keys() == {"memory", "Int8Tensor"}
        status = handle.status
        assert all(amount.in_force == amount.requested for amount in status.sites.values())
        with pytest.raises(ApplyError, match=r"quantised.* since, and forward reads it elsewhere"):
            handle.undo()
        assert handle.verify(deep=True).ok
        transformer.context_embedder.weight = packed.context_embedder.weight
        assert handle.verify().state is State.DEGRADED
        with pytest.raises(ApplyError, match="cannot undo"):
            handle.undo()

    def test_torchao_float8_makes_nan_of_rows_that_are_all_zero(self, transformer, store):
        quantization = pytest.importorskip("torchao.quantization")
        handle = guard(transformer, BOTH, store=store)
        quantization.quantize_(transformer, quantization.Float8WeightOnlyConfig())
        found = handle.verify()
        assert found.state is State.DEGRADED
        assert any("no numbers" in fault for fault in found.faults)

    def test_quanto_float8_makes_nan_of_rows_that_are_all_zero(self, transformer, store):
        quanto = pytest.importorskip("optimum.quanto")
        handle = guard(transformer, BOTH, store=store)
        quanto.quantize(transformer, weights=quanto.qfloat8)
        quanto.freeze(transformer)
        found = handle.verify()
        assert found.state is State.DEGRADED
        assert any("no numbers" in fault for fault in found.faults)

    def test_bitsandbytes_nf4(self, transformer, store):
        bitsandbytes = pytest.importorskip("bitsandbytes")

        def pack(model):
            plain = model.context_embedder
            packed = bitsandbytes.nn.Linear4bit(
                plain.in_features, plain.out_features, quant_type="nf4", compute_dtype=torch.float32
            )
            packed.load_state_dict(plain.state_dict())
            model.context_embedder = packed.to("cpu")

        before = copy.deepcopy(transformer)
        pack(before)
        with pytest.raises(ModelError, match=r"context_embedder.weight.*Params4bit|expected 2 axes|disagree"):
            guard(before, BOTH, store=store)
        handle = guard(transformer, BOTH, store=store)
        pack(transformer)
        assert handle.verify(deep=True).ok
        with pytest.raises(ApplyError, match="forward reads it elsewhere"):
            handle.undo()
        transformer.context_embedder = before.context_embedder
        assert handle.verify().state is State.DEGRADED

    def test_gguf(self, transformer, store):
        gguf = pytest.importorskip("gguf")
        from diffusers.quantizers.gguf.utils import GGUFParameter

        kind = gguf.GGMLQuantizationType.Q8_0
        layer = transformer.transformer_blocks[0].ff.net[2]
        rows = gguf.quants.quantize(layer.weight.detach().numpy(), kind)
        layer.weight = GGUFParameter(torch.from_numpy(rows), requires_grad=False, quant_type=kind)
        with pytest.raises(ModelError, match=r"disagree on the number of neurons|got GGUFParameter"):
            guard(transformer, BOTH, store=store)


SHARDED = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from safeflux.errors import ApplyError, ModelError
from safeflux import guard
from tests.helpers.models import build_transformer
from tests.helpers.policies import BOTH

dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (2,))
transformer, plain = build_transformer(0), build_transformer(0)
handle = guard(transformer, BOTH, store=sys.argv[1])
for model in (transformer, plain):
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
assert isinstance(transformer.context_embedder.weight, DTensor)
assert handle.verify().ok
inputs = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    drawn = transformer(**inputs, return_dict=False)[0]
assert handle.verify(deep=True).ok, handle.verify(deep=True)
expected = torch.load(sys.argv[3], weights_only=True)
assert torch.allclose(drawn, expected, atol=1e-6)
try:
    handle.undo()
except ApplyError as error:
    assert "sharded since, and forward reads it elsewhere" in str(error), error
else:
    raise AssertionError("an undo that changed nothing was told to be one")
try:
    guard(plain, BOTH, store=sys.argv[1])
except ModelError as error:
    assert "DTensor" in str(error) and "load, guard, then" in str(error), error
else:
    raise AssertionError("a sharded model was written to")
transformer.reshard()
with torch.no_grad():
    transformer.context_embedder.weight.to_local().add_(1)
assert not handle.verify(deep=True).ok
print("rank", dist.get_rank(), "done", flush=True)
dist.barrier()
# The sharded models hold the group, so that gloo's threads outlive it. One that asks for Python while the interpreter
# ends aborts the process (pytorch/pytorch#179291).
os._exit(0)
"""


def test_a_model_sharded_over_two_processes_stays_guarded(transformer, store, inputs, forward, tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(textwrap.dedent(SHARDED))
    torch.save(inputs, tmp_path / "inputs.pt")
    guard(transformer, BOTH, store=store)
    torch.save(forward(transformer), tmp_path / "expected.pt")
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)),
            *(str(store), str(tmp_path / "inputs.pt"), str(tmp_path / "expected.pt")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stdout.count("done") == 2
