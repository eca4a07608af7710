"""Lists of scores become masks: in the order in which the model calls its parts, or refused with the reason."""

import hashlib
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from benchmarks.fluxfile import flux1_shapes
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.cli import main
from safeflux.convert.import_scores import check_torch, import_masks
from safeflux.errors import ConfigError, MaskFileError, MaskMismatchError
from safeflux.masks.combine import sources_digest
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import check_fit
from safeflux.model.apply import apply_masks_
from tests.helpers.models import SMALL

ABOUT = {"category": "weapons", "concepts": ["old pistol"], "licence": "LicenseRef-ours"}
FF_ORDER = [f"transformer_blocks.{n}.{name}:ff" for n in range(2) for name in ("ff", "ff_context")]
WIDTHS = {"ff": [128] * 4, "norm": [192] * 2, "attn": [2] * 4}
"""What the small model has, in call order."""


def draw(kind, widths=WIDTHS, dtype=torch.float32):
    """Scores as training leaves them: about a third is off; heads are as they began."""
    if kind == "attn":
        return [torch.full((width,), 3.0, dtype=dtype) for width in widths[kind]]
    generator = torch.Generator().manual_seed(len(kind))
    return [(torch.randn(width, generator=generator) + 0.5).to(dtype) for width in widths[kind]]


@pytest.fixture
def model(tmp_path, base_transformer):
    base_transformer.save_pretrained(tmp_path / "tiny-flux")
    return Checkpoint.open(tmp_path / "tiny-flux")


@pytest.fixture
def save(tmp_path):
    """Write what torch.save makes of something."""

    def write(name, scores):
        torch.save(scores, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def files(save):
    """The reference code's three files, by its names."""
    return [save(f"epoch_1_step_24_{kind}.pt", draw(kind)) for kind in WIDTHS]


def test_kept_is_what_scores_over_zero(model, files, base_transformer):
    made = import_masks(files, model, **ABOUT)
    expected = dict(zip(FF_ORDER, draw("ff"), strict=True))
    expected |= {f"transformer_blocks.{n}.norm1_context:norm": scores for n, scores in enumerate(draw("norm"))}
    assert set(made.masks) == set(expected)
    for name, scores in expected.items():
        assert np.array_equal(made.masks[name], (scores > 0).numpy())
    assert made.skipped == (files[2],)
    check_fit(made.masks, model.sites)
    with apply_masks_(base_transformer, made.masks) as applied:
        assert applied


def test_the_metadata_say_what_was_imported_from_what(model, files):
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    meta = import_masks(files, model, **ABOUT).meta
    assert (meta.base_model, meta.family, meta.fingerprint) == ("tiny-flux", "flux1", model.fingerprint)
    assert (meta.category, meta.concepts, meta.licence) == ("weapons", ("old pistol",), "LicenseRef-ours")
    assert meta.evaluation == {}
    assert meta.config_sha256 == sources_digest(sums)
    assert meta.method == (
        f"imported from lists of scores (ff sha256:{sums[0]}, norm sha256:{sums[1]}, attn sha256:{sums[2]}), "
        "config_sha256 over their digests: kept where score > 0"
    )
    assert import_masks(files[::-1], model, **ABOUT).meta == meta
    assert import_masks(files, model, base_model="FLUX.1-dev", **ABOUT).meta.base_model == "FLUX.1-dev"


def test_the_order_is_that_in_which_the_model_calls_its_parts(model, save, transformer, forward):
    called = []
    for name, module in transformer.named_modules():
        if name.rpartition(".")[2] in ("ff", "ff_context", "norm1_context"):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    forward(transformer)
    feed_forwards, norms = ([name for name in called if kind in name] for kind in ("ff", "norm"))
    scores = {kind: [torch.ones(width) for width in WIDTHS[kind]] for kind in ("ff", "norm")}
    for vectors in scores.values():
        for n, vector in enumerate(vectors):
            vector[n] = -1.0
    masks = import_masks([save(f"{kind}.pt", each) for kind, each in scores.items()], model, **ABOUT).masks
    expected = {f"{name}:ff": [n] for n, name in enumerate(feed_forwards)}
    expected |= {f"{name}:norm": [n] for n, name in enumerate(norms)}
    assert {name: np.flatnonzero(~keep).tolist() for name, keep in masks.items()} == expected


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_float_is_fine(model, save, dtype):
    scores = draw("norm", dtype=dtype)
    masks = import_masks([save("norm.pt", scores)], model, **ABOUT).masks
    for name, vector in zip(sorted(masks), scores, strict=True):
        assert np.array_equal(masks[name], (vector.double() > 0).numpy())


def test_parameters_are_fine_and_zero_is_off(model, save):
    scores = [torch.nn.Parameter(vector.clamp(min=0)) for vector in draw("norm")]
    masks = import_masks([save("norm.pt", scores)], model, **ABOUT).masks
    assert masks.count.masked == sum(int((vector == 0).sum()) for vector in scores) > 0


def test_the_threshold_moves_what_is_off(model, files):
    low, high = (import_masks(files, model, threshold=t, **ABOUT) for t in (-1.0, 1.0))
    assert 0 < low.masks.count.masked < high.masks.count.masked
    assert high.meta.method.endswith("score > 1")
    for threshold in (math.nan, math.inf):
        with pytest.raises(ConfigError, match="finite number"):
            import_masks(files, model, threshold=threshold, **ABOUT)


def test_the_layout_of_the_models_file_does_not_matter(model, files, bfl):
    one, other = import_masks(files, model, **ABOUT), import_masks(files, Checkpoint.open(bfl), **ABOUT)
    assert one.masks == other.masks
    assert one.meta.fingerprint == other.meta.fingerprint
    assert other.meta.base_model == "flux"


def test_another_family_has_other_places(tmp_path, flux2_transformer, save):
    flux2_transformer.save_pretrained(tmp_path / "tiny-flux2")
    model = Checkpoint.open(tmp_path / "tiny-flux2")
    width = model.sites[FF_ORDER[0]].num_bits
    made = import_masks([save("ff.pt", draw("ff", {"ff": [width] * 4}))], model, **ABOUT)
    assert sorted(made.masks) == sorted(FF_ORDER)
    assert made.meta.family == "flux2"
    with pytest.raises(MaskMismatchError, match="expected 0 vectors"):
        import_masks([save("norm.pt", draw("norm"))], model, **ABOUT)


def test_as_many_blocks_as_flux1_has(tmp_path, save):
    torch.manual_seed(0)
    shape = SMALL | {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 4, "num_attention_heads": 2}
    FluxTransformer2DModel(**shape, pooled_projection_dim=4, axes_dims_rope=(0, 2, 2)).save_pretrained(tmp_path / "m")
    widths = {"ff": [32] * 38, "norm": [48] * 19, "attn": [2] * 57}
    files = [save(f"{kind}.pt", draw(kind, widths)) for kind in widths]
    masks = import_masks(files, Checkpoint.open(tmp_path / "m"), **ABOUT).masks
    assert len(masks) == 57
    for n, scores in enumerate(draw("ff", widths)):
        name = f"transformer_blocks.{n // 2}.ff{'_context' * (n % 2)}:ff"
        assert np.array_equal(masks[name], (scores > 0).numpy())
    for n, scores in enumerate(draw("norm", widths)):
        assert np.array_equal(masks[f"transformer_blocks.{n}.norm1_context:norm"], (scores > 0).numpy())


def write_empty_flux(path):
    """FLUX.1-dev's header and size; the numbers are a hole in the file, which takes no room on the disk."""
    header, offset = {}, 0
    for name, shape in flux1_shapes().items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def test_flux1_at_its_full_size(tmp_path, save):
    path = tmp_path / "flux1-dev.safetensors"
    write_empty_flux(path)
    widths = {"ff": [12288] * 38, "norm": [18432] * 19, "attn": [24] * 57}
    scores = {kind: draw(kind, widths, torch.bfloat16) for kind in widths}
    made = import_masks([save(f"{kind}.pt", scores[kind]) for kind in widths], Checkpoint.open(path), **ABOUT)
    assert made.masks.counts_by_kind["ff"].total == 466_944
    assert made.masks.counts_by_kind["norm"].total == 350_208
    assert made.meta.base_model == "flux1-dev"
    assert made.masks.count.masked == sum(int((each <= 0).sum()) for each in scores["ff"] + scores["norm"])


REFUSED = {
    "too few": ("ff.pt", draw("ff")[:-1], MaskMismatchError, "expected 4 vectors, one for each ff site"),
    "too many": ("norm.pt", draw("norm") * 2, MaskMismatchError, "expected 2 vectors, one for each norm site"),
    "too few heads": ("attn.pt", draw("attn")[:-1], MaskMismatchError, "expected 4 vectors, one for each block"),
    "too wide": ("norm.pt", [torch.ones(193)] * 2, MaskMismatchError, r"vector 0 \(.*\): expected 192 scores, got 193"),
    "heads off": ("attn.pt", [torch.tensor([3.0, -1.0])] * 4, MaskFileError, "would switch off 1 attention heads"),
    "integers": ("ff.pt", [torch.ones(128).int()] * 4, MaskFileError, "expected a vector of floats, got torch.int32"),
    "bools": ("ff.pt", [torch.ones(128) > 0] * 4, MaskFileError, "expected a vector of floats, got torch.bool"),
    "bits": ("ff.pt", [torch.ones(128).byte().view(torch.float4_e2m1fn_x2)] * 4, MaskFileError, "got torch.float4"),
    "matrices": ("ff.pt", [torch.ones(1, 128)] * 4, MaskFileError, r"got torch.float32 of shape \(1, 128\)"),
    "sparse": ("ff.pt", [torch.ones(128).to_sparse()] * 4, MaskFileError, "torch.sparse_coo"),
    "no scores": ("attn.pt", [torch.ones(0)] * 4, MaskFileError, "expected a vector of floats"),
    "NaN": ("norm.pt", [torch.full((192,), math.nan)] * 2, MaskFileError, "expected finite scores"),
    "infinity": ("attn.pt", [torch.full((2,), math.inf)] * 4, MaskFileError, "expected finite scores"),
    "numbers": ("ff.pt", [1.0] * 4, MaskFileError, r"vector 0 \(.*ff:ff\): expected a tensor, got float"),
    "a dictionary": ("ff.pt", {"ff": torch.ones(128)}, MaskFileError, "expected a list .* got dict"),
    "one tensor": ("ff.pt", torch.ones(4, 128), MaskFileError, "expected a list .* got Tensor"),
    "no name": ("scores.pt", draw("ff"), MaskFileError, "expected one of the words ff, norm, attn .* got none"),
    "part of a word": ("offset.pt", draw("ff"), MaskFileError, "got none"),
    "two names": ("ff_norm.pt", draw("ff"), MaskFileError, "got ff and norm"),
    "nothing off": ("ff.pt", [torch.ones(128)] * 4, MaskFileError, "nothing would be masked"),
    "heads alone": ("attn.pt", draw("attn"), MaskFileError, "nothing would be masked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(model, save, case):
    name, scores, error, message = REFUSED[case]
    path = save(name, scores)
    with pytest.raises(error, match=message) as found:
        import_masks([path], model, **ABOUT)
    assert str(found.value).startswith(str(path))


def test_two_files_of_the_same_places_are_refused(model, save):
    paths = [save(name, draw("ff")) for name in ("ff.pt", "other-ff.pt")]
    with pytest.raises(MaskFileError, match=r"expected one file with 'ff' in its name, got .*ff\.pt too"):
        import_masks(paths, model, **ABOUT)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_in_a_file_is_run(model, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [save("ff.pt", [Evil()]), tmp_path / "norm.pt", tmp_path / "attn.pt"]
    paths[1].write_bytes(b"no pickle")
    paths[2].write_bytes(save("whole.pt", draw("attn")).read_bytes()[:-40])
    for path in paths:
        with pytest.raises(MaskFileError, match="cannot be read as a list of tensors") as found:
            import_masks([path], model, **ABOUT)
        assert "weights_only" not in str(found.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(MaskFileError, match="cannot be read"):
        import_masks([tmp_path / "missing_ff.pt"], model, **ABOUT)


def test_a_torch_that_is_not_safe_is_refused():
    with pytest.raises(ConfigError, match=r"torch 2.9.1: .* \(CVE-2026-24747\); pip install -U 'torch>=2.10'"):
        check_torch("2.9.1")
    check_torch("2.10.0")
    check_torch(torch.__version__)


@pytest.fixture
def run(model, files, tmp_path, monkeypatch):
    """The command in a folder with the model and the three files."""
    monkeypatch.chdir(tmp_path)
    fixed = ["--model", "tiny-flux", "--category", "weapons", "--concept", "pistol", "--licence", "LicenseRef-ours"]
    return lambda *given: CliRunner().invoke(main, ["mask", "import", *given, *fixed], catch_exceptions=False)


FILES = [f"epoch_1_step_24_{kind}.pt" for kind in WIDTHS]


def test_the_command_writes_a_mask_file_and_tells_what_is_in_it(run, tmp_path):
    done = run(*FILES, "weapons.safetensors")
    assert done.exit_code == 0
    masks, meta = load_masks(tmp_path / "weapons.safetensors")
    assert meta.concepts == ("pistol",)
    skipped, written, _, *rows = done.stdout.splitlines()
    assert skipped == f"{FILES[2]}: skipped: it keeps all heads, for which masks have no sites"
    assert "weapons.safetensors: written, sha256:" in written
    told = {row.split()[0]: row.split()[1:3] for row in rows}
    for name, count in masks.counts.items():
        assert told[name] == [str(count.masked), str(count.total)]
    assert told["all"][0] == str(masks.count.masked)


def test_the_command_in_json_and_what_it_overwrites(run, tmp_path):
    told = json.loads(run(*FILES, "weapons.safetensors", "--json").stdout)
    assert told["skipped"] == [FILES[2]]
    assert len(told["sites"]) == 6
    before = (tmp_path / "weapons.safetensors").read_bytes()
    assert run(FILES[0], "weapons.safetensors").stderr.startswith("error: weapons.safetensors: already exists")
    assert (tmp_path / "weapons.safetensors").read_bytes() == before
    assert run(*FILES, "weapons.safetensors", "--overwrite").exit_code == 0
    assert (tmp_path / "weapons.safetensors").read_bytes() == before  # the same files, the same bytes
    assert run("weapons.safetensors").exit_code == 2
    shutil.rmtree(tmp_path / "tiny-flux")
    assert "tiny-flux" in run(*FILES, "other.safetensors").stderr
    assert not (tmp_path / "other.safetensors").exists()
