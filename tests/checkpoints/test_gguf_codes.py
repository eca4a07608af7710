"""Single numbers of packed GGUF types: which can be zero, that nothing else changes, and how that is judged."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.gguf_file import GgufFile
from safeflux.checkpoints.zero_codes import find_layers
from safeflux.errors import ModelError
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from tests.helpers.ggufs import READABLE, random_rows, read_gguf, write_gguf
from tests.helpers.layouts import to_bfl
from tests.helpers.models import MATRICES, SMALL
from tests.helpers.policies import BLADES, BOTH, SPIRITS

SINGLE = {"Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q3_K", "TQ2_0", "MXFP4", "NVFP4"}
"""Types in which a number can be zero by its own bits."""
WIDE = SMALL | {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 16}
"""256 wide, so that the rows of its matrices are blocks of any type."""
REFUSED = ["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "TQ1_0"]
SCALES = {"Q8_0": 0, "Q4_0": 0, "Q5_0": 0, "Q6_K": 208, "Q3_K": 108}
"""Where the scale of a block lies."""


def format_of(kind, folder):
    """As a file with such a tensor has it."""
    path = write_gguf(folder / "one.gguf", {"one": torch.ones(1, 256)}, GGMLQuantizationType.F32, special={"one": kind})
    return GgufFile.open(path).tensors["one"].format


def fill(form, rows, numbers):
    """Rows with some of their numbers, counted row by row, set to zero."""
    made = rows.copy()
    for layer, places in form.places(np.asarray(numbers)):
        layer.fill_(made.reshape(-1), places)
    return made


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_a_number_can_be_zero_alone_in_these_types_and_no_other(kind, tmp_path):
    assert bool(format_of(kind, tmp_path).layers) == (kind.name in SINGLE)


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_each_number_of_a_block_becomes_zero_and_the_others_stay_bit_for_bit(name, tmp_path):
    kind = GGMLQuantizationType[name]
    form, block = format_of(kind, tmp_path), GGML_QUANT_SIZES[kind][0]
    rows = random_rows(kind, (64, block), seed=1)
    before = dequantize(rows, kind)
    for number in range(block):
        after = dequantize(fill(form, rows, np.arange(64) * block + number), kind)
        assert not after[:, number].any()
        after[:, number] = before[:, number]
        assert np.array_equal(after.view(np.uint32), before.view(np.uint32)), number
    assert not dequantize(fill(form, rows, np.arange(64 * block)), kind).any()
    some = np.flatnonzero(np.random.default_rng(2).random(64 * block) < 0.3)
    expected = before.copy()
    expected.flat[some] = 0
    assert np.array_equal(dequantize(fill(form, rows, some), kind), expected)
    assert np.array_equal(form.nonzero(fill(form, rows, some)), expected != 0)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("name", "place"), SCALES.items())
def test_a_code_of_zero_is_no_zero_where_the_scale_is_not_finite(name, place, scale, tmp_path):
    kind = GGMLQuantizationType[name]
    form = format_of(kind, tmp_path)
    rows = fill(form, random_rows(kind, (2, form.block), seed=1), np.arange(2 * form.block))
    rows[1, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    assert form.nonzero(rows).any(axis=1).tolist() == [False, True]
    assert form.nonzero(rows)[1].all()


def test_what_only_seems_to_be_a_code_is_not_taken_for_one():
    def plain(data):
        return data.astype(np.float32)

    def tied(data):  # while the first number is not zero, the second seems to have a code of its own
        numbers = plain(data).reshape(-1, 2)
        numbers[numbers[:, 0] == 0, 1] *= 2
        return numbers.reshape(-1)

    def seldom_finite(data):
        return np.where(data < 2, data, np.nan).astype(np.float32)

    assert [layer.cells.tolist() for layer in find_layers(plain, 2, 2)] == [[0, 1]]
    assert not find_layers(tied, 2, 2)
    assert not find_layers(seldom_finite, 2, 2)


@pytest.fixture(scope="module")
def wide():
    """A model, and masks for it."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**WIDE, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6)).eval()
    draw = torch.Generator().manual_seed(3)
    masks = {site.name: torch.rand(site.shape, generator=draw) >= 0.05 for site in find_sites(model).values()}
    return model, masks


def save(folder, masks, make_meta, base):
    """A store of masks for a base model."""
    folder.mkdir()
    weights = {name: mask for name, mask in masks.items() if name.endswith(MATRICES)}
    neurons = {name: mask for name, mask in masks.items() if name not in weights}
    save_masks(folder / "blades.safetensors", MaskSet(weights), make_meta(fingerprint=base))
    spirits = make_meta(fingerprint=base, category="alcohol", concepts=("beer",))
    save_masks(folder / "spirits.safetensors", MaskSet(neurons), spirits)
    return folder


@pytest.fixture
def masked(wide, make_meta, tmp_path):
    """For each tensor of the model, which numbers a guard in memory sets to zero."""
    model, masks = wide
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    store = save(tmp_path / "memory", masks, make_meta, fingerprint(model))
    handle = guard(model, BOTH, store=store)
    found = {name: tensor.numpy() == 0 for name, tensor in to_bfl(model).items()}
    handle.undo()
    return found


@pytest.fixture
def packed(wide, make_meta, tmp_path):
    """Writes a file of other weights in a type, and the store of masks for it."""

    def write(kind):
        model, masks = wide
        draw = torch.Generator().manual_seed(1)
        weights = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in to_bfl(model).items()}
        source = write_gguf(tmp_path / "flux.gguf", weights, kind)
        return source, save(tmp_path / "store", masks, make_meta, Checkpoint.open(source).fingerprint)

    return write


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_neurons_and_weights_are_zero_and_all_else_is_as_it_was_bit_for_bit(packed, masked, tmp_path, name):
    source, store = packed(GGMLQuantizationType[name])
    target = tmp_path / "guarded.gguf"
    bake(source, target, BOTH, store=store)
    before, after = read_gguf(source), read_gguf(target)
    for tensor, off in masked.items():
        assert not after[tensor][off].any(), tensor
        assert np.array_equal(after[tensor][~off].view(np.uint32), before[tensor][~off].view(np.uint32)), tensor
    differ = (np.frombuffer(one, np.uint8) for one in map(data_of, (source, target)))
    assert check_bake(source, target, BOTH, store=store).num_changed_bytes == np.not_equal(*differ).sum()
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED
    assert verify_files(source, BOTH, store=store, base=source).status.state is State.UNGUARDED


def data_of(path):
    """What lies behind the header."""
    return path.read_bytes()[GGUFReader(path).data_offset :]


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("policy", [SPIRITS, BLADES], ids=lambda policy: policy.name)
def test_one_number_that_is_back_or_is_none_is_seen(packed, tmp_path, name, policy):
    source, store = packed(GGMLQuantizationType[name])
    target = tmp_path / "guarded.gguf"
    bake(source, target, policy, store=store, form="columns")
    tensor = "double_blocks.0.txt_mlp.2.weight"
    block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    was, now = read_gguf(source)[tensor], read_gguf(target)[tensor]
    row, column = np.argwhere(was != now)[7]
    here = slice(column // block * nbytes, (column // block + 1) * nbytes)
    data, other = (
        next(each.data for each in GGUFReader(path, mode).tensors if each.name == tensor)
        for path, mode in ((target, "r+"), (source, "r"))
    )
    good = data[row, here].copy()
    bad = good.copy()
    bad[SCALES[name] : SCALES[name] + 2] = 0xFF
    for spoilt in (other[row, here], bad):
        data[row, here] = spoilt
        data.flush()
        assert verify_files(target, policy, store=store).status.state is State.DEGRADED
    data[row, here] = good
    data.flush()
    assert verify_files(target, policy, store=store).status.state is State.GUARDED


@pytest.mark.parametrize("name", REFUSED)
def test_types_without_a_code_of_zero_are_refused_but_for_rows(packed, tmp_path, name):
    source, store = packed(GGMLQuantizationType[name])
    for policy, message in (
        (SPIRITS, f"masks columns of it, but in {name} only whole rows .* Bake with --form rows, or bake the model"),
        (BLADES, f"masks single weights of it, but in {name} only whole rows .* Bake the model before it is quantised"),
    ):
        with pytest.raises(ModelError, match=message):
            bake(source, tmp_path / "guarded.gguf", policy, store=store)
    bake(source, tmp_path / "guarded.gguf", SPIRITS, store=store, form="rows")
    assert verify_files(tmp_path / "guarded.gguf", SPIRITS, store=store).status.state is State.GUARDED
