"""What is no model that can be opened: each says what it is, and the way out, which works."""

import copy
import json
import os
import re

import diffusers
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint, home_of
from safeflux.checkpoints.source import open_source
from safeflux.errors import ModelError
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from safeflux.reference.model import load_pipeline
from tests.helpers.ggufs import write_gguf
from tests.helpers.layouts import flux2_to_bfl, to_bfl
from tests.helpers.policies import BLADES

NAME = "diffusion_pytorch_model"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 23802932552\n"


def hub_cache(root, base):
    base.save_pretrained(root / "models--org--flux" / "snapshots" / "0a1b" / "transformer")
    return root / "models--org--flux", r"hub's cache.*pass .*models--org--flux/snapshots/0a1b$"


def without_transformer(root, base):
    (root / "model").mkdir()
    (root / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": [null, null]}')
    return root / "model", "saved without its transformer; pass the folder or file"


def fp16_only(root, base):
    base.save_pretrained(root / "model" / "transformer", variant="fp16")
    return root / "model", r"found only the variant 'fp16'.*from_pretrained\(.*variant='fp16'.*save_pretrained"


def sharded_fp16_only(root, base):
    base.save_pretrained(root / "model", variant="fp16", max_shard_size="40KB")
    return root / "model", "found only the variant 'fp16'"


def pickles(root, base):
    base.save_pretrained(root / "model", safe_serialization=False)
    return root / "model", rf"found {NAME}\.bin, a pickle.*use_safetensors=False"


def bfl_names(root, base):
    base.save_pretrained(root / "model")
    save_file(to_bfl(base), root / "model" / f"{NAME}.safetensors")
    return root / "model", rf"Black Forest Labs' names.*pass the file itself: .*{NAME}\.safetensors"


def single_file_in_folder(root, base):
    (root / "model").mkdir()
    save_file(to_bfl(base), root / "model" / "flux1.safetensors")
    return root / "model", r"found flux1\.safetensors; pass the file itself: .*model/flux1\.safetensors"


def pointer(root, base):
    (root / "flux.safetensors").write_text(POINTER)
    return root / "flux.safetensors", r"Git LFS pointer.*git lfs pull"


def pointer_to_gguf(root, base):
    (root / "flux.gguf").write_text(POINTER)
    return root / "flux.gguf", r"Git LFS pointer.*git lfs pull"


def pointer_to_onnx(root, base):
    (root / "flux.onnx").write_text(POINTER)
    return root / "flux.onnx", r"Git LFS pointer.*git lfs pull"


def pointer_in_folder(root, base):
    base.save_pretrained(root / "model" / "transformer")
    (root / "model" / "transformer" / f"{NAME}.safetensors").write_text(POINTER)
    return root / "model", r"Git LFS pointer.*git lfs pull"


def torch_file(root, base):
    torch.save(base.state_dict(), root / "flux.pt")
    return (
        root / "flux.pt",
        r"a pickle from torch\.save, which can run code.*save_file\(torch\.load\(FILE, weights_only=True\)",
    )


def pipe(root, base):
    os.mkfifo(root / "flux.safetensors")
    return root / "flux.safetensors", "got a pipe, a device or a socket"


def nf4(root, base):
    tensors = load_file(saved(root, base))
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    tensors |= {f"{name}.absmax": torch.ones(4), f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(9).byte()}
    save_file(tensors, root / "model" / f"{NAME}.safetensors")
    return root / "model", "quantised to NF4 by bitsandbytes.*Bake or verify the model before it is quantised"


def nvfp4(root, base):
    tensors = to_bfl(base)
    name = "double_blocks.0.img_mlp.0.weight"
    tensors[name] = torch.zeros(tensors[name].shape[0], tensors[name].shape[1] // 2, dtype=torch.uint8)
    tensors |= {f"{name}_scale": torch.ones(2, dtype=torch.float8_e4m3fn), f"{name}_scale_2": torch.ones(1)}
    save_file(tensors, root / "flux.safetensors")
    return root / "flux.safetensors", "quantised to NVFP4.*Bake or verify the model before it is quantised"


def saved(root, base):
    base.save_pretrained(root / "model")
    return root / "model" / f"{NAME}.safetensors"


def deep_index(root, base):
    saved(root, base)
    (root / "model" / f"{NAME}.safetensors.index.json").write_text('{"a":' * 50_000)
    return (
        root / "model",
        r"index\.json: cannot be read as an index of shards \(ValueError\('values are nested more than 64",
    )


def index_of_no_map(root, base):
    saved(root, base)
    (root / "model" / f"{NAME}.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    return root / "model", "cannot be read as an index of shards"


def index_of_nothing(root, base):
    saved(root, base)
    (root / "model" / f"{NAME}.safetensors.index.json").write_text('{"weight_map": {}}')
    return root / "model", r"index\.json: names no tensors; copy the model again"


CASES = [
    *(hub_cache, without_transformer, fp16_only, sharded_fp16_only, pickles, bfl_names, single_file_in_folder, pointer),
    *(pointer_to_gguf, pointer_to_onnx, pointer_in_folder, torch_file, pipe, nf4, nvfp4, deep_index, index_of_no_map),
    index_of_nothing,
]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_each_says_what_it_is_and_the_way_out(make, base_transformer, store, tmp_path):
    path, message = make(tmp_path, base_transformer)
    for attempt in (
        lambda: bake(path, tmp_path / f"guarded{path.suffix}", BLADES, store=store),
        lambda: verify_files(path, BLADES, store=store),
    ):
        with pytest.raises(ModelError, match=message):
            attempt()
    assert not list(tmp_path.glob("*guarded*"))


def test_a_hub_id_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"hf download black-forest-labs/FLUX\.1-dev --local-dir FLUX\.1-dev"):
        open_source("black-forest-labs/FLUX.1-dev")
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match=r"emoji-flx: does not exist; did you mean 'emoji-flux'\?"):
        open_source("emoji-flx")
    with pytest.raises(ModelError, match=r"models/flux: does not exist; check the path"):
        open_source("models/flux")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ModelError, match=r"link: .*it is a link to gone, which does not exist"):
        open_source("link")


@pytest.mark.parametrize("kind", ["pipeline", "base_transformer", "flux2_transformer"])
def test_the_advised_way_from_a_variant_keeps_every_bit(request, kind, tmp_path):
    """It is run as printed."""
    model = load_pipeline() if kind == "pipeline" else copy.deepcopy(request.getfixturevalue(kind))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model", variant="bf16")
    with pytest.raises(ModelError, match="found only the variant 'bf16'") as caught:
        Checkpoint.open(tmp_path / "model")
    advice = re.search(r"diffusers\.\w+\.from_pretrained\(.*", str(caught.value))[0]
    eval(advice.replace("FOLDER", str(tmp_path / "plain")), {"diffusers": diffusers, "torch": torch})
    was = load_file(home_of(tmp_path / "model") / f"{NAME}.bf16.safetensors")
    (made,) = Checkpoint.open(tmp_path / "plain").files
    now = load_file(made.path)
    assert now.keys() == was.keys()
    assert all(now[name].dtype == torch.bfloat16 and torch.equal(now[name], was[name]) for name in was)


@pytest.mark.parametrize(
    "suffixes", [(".SAFETENSORS", ".safetensors"), (".sft", ".safetensors"), (".safetensors", ".sft")]
)
def test_suffixes_in_any_case_and_sft_are_safetensors(bfl, store, tmp_path, suffixes):
    source, target = (tmp_path / f"{name}{suffix}" for name, suffix in zip(("one", "two"), suffixes, strict=True))
    bfl.rename(source)
    bake(source, target, BLADES, store=store)
    check_bake(source, target, BLADES, store=store)


def test_gguf_in_capitals(base_transformer, store, tmp_path):
    write_gguf(tmp_path / "X.GGUF", to_bfl(base_transformer), GGMLQuantizationType.F16)
    bake(tmp_path / "X.GGUF", tmp_path / "guarded.gguf", BLADES, store=store)
    assert verify_files(tmp_path / "guarded.gguf", BLADES, store=store).status.state is State.GUARDED


def respelt(tensors):
    return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in tensors.items()}


def test_norms_of_q_and_k_have_two_spellings(base_transformer, flux2_transformer, store, tmp_path):
    tensors = respelt(to_bfl(base_transformer))
    assert sum(name.endswith("_norm.weight") for name in tensors) == 12
    save_file(tensors, tmp_path / "flux.safetensors")
    write_gguf(tmp_path / "flux.gguf", tensors, GGMLQuantizationType.F32)
    for suffix in (".safetensors", ".gguf"):
        source, target = tmp_path / f"flux{suffix}", tmp_path / f"guarded{suffix}"
        assert Checkpoint.open(source).fingerprint == fingerprint(base_transformer)
        bake(source, target, BLADES, store=store)
        assert verify_files(target, BLADES, store=store).status.state is State.GUARDED
        assert verify_files(target, BLADES, store=store, base=source).status.state is State.GUARDED
    save_file(respelt(flux2_to_bfl(flux2_transformer)), tmp_path / "flux2.safetensors")
    assert Checkpoint.open(tmp_path / "flux2.safetensors").fingerprint == fingerprint(flux2_transformer)


def test_a_norm_that_is_there_in_both_spellings_is_refused(base_transformer, store, tmp_path):
    tensors = to_bfl(base_transformer)
    save_file(tensors | {name: t.clone() for name, t in respelt(tensors).items()}, tmp_path / "flux.safetensors")
    with pytest.raises(ModelError, match=r"_norm\.(scale|weight)' is none that a flux1 model has"):
        bake(tmp_path / "flux.safetensors", tmp_path / "guarded.safetensors", BLADES, store=store)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0"])
def test_a_quantised_file_that_was_never_guarded_is_unguarded(bfl, base_transformer, store, tmp_path, kind):
    path = tmp_path / "flux.gguf"

    write_gguf(path, to_bfl(base_transformer), GGMLQuantizationType[kind])
    found = verify_files(path, BLADES, store=store, base=bfl).status
    assert sum(amount.in_force for amount in found.sites.values()) > 0
    assert found.state is State.UNGUARDED


def test_a_scaled_float8_file_is_unguarded_and_a_guarded_one_that_was_edited_is_degraded(bfl, store, tmp_path):
    tensors = load_file(bfl)
    for name, tensor in list(tensors.items()):
        if tensor.dim() == 2:
            tensor[torch.rand(tensor.shape) < 0.05] *= 1e-6  # which float8 rounds to zero
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.replace("weight", "scale_weight")] = scale
    save_file(tensors, tmp_path / "small.safetensors")
    found = verify_files(tmp_path / "small.safetensors", BLADES, store=store, base=bfl).status
    assert sum(amount.in_force for amount in found.sites.values()) > 0
    assert found.state is State.UNGUARDED
    bake(bfl, tmp_path / "guarded.safetensors", BLADES, store=store)
    edited = load_file(tmp_path / "guarded.safetensors")
    edited["txt_in.weight"][edited["txt_in.weight"] == 0] = 1
    save_file(edited, tmp_path / "edited.safetensors")
    assert verify_files(tmp_path / "edited.safetensors", BLADES, store=store, base=bfl).status.state is State.DEGRADED


def test_deep_json_in_metadata_and_headers_is_one_clear_error(bfl, store, tmp_path):
    save_file(load_file(bfl), tmp_path / "flux.safetensors", {"safeflux": "[" * 50_000})
    with pytest.raises(ModelError, match=r"metadata key 'safeflux' cannot be read"):
        verify_files(tmp_path / "flux.safetensors", BLADES, store=store)
    text = json.dumps({"__metadata__": {}}).encode()[:-1] + b',"a":' + b"[" * 50_000
    (tmp_path / "deep.safetensors").write_bytes(np.uint64(len(text)).tobytes() + text)
    with pytest.raises(ModelError, match=r"deep\.safetensors: cannot be read as safetensors"):
        bake(tmp_path / "deep.safetensors", tmp_path / "guarded.safetensors", BLADES, store=store)


@pytest.mark.parametrize("name", ["transformer/config.json", "model_index.json"])
def test_deep_json_in_a_folder_is_one_clear_error(base_transformer, store, tmp_path, name):
    base_transformer.save_pretrained(tmp_path / "model" / "transformer")
    (tmp_path / "model" / name).write_text("[" * 50_000)
    attempts = [lambda: verify_files(tmp_path / "model", BLADES, store=store, base=tmp_path / "model")]
    if name == "model_index.json":
        attempts.append(lambda: bake(tmp_path / "model", tmp_path / "guarded", BLADES, store=store))
    for attempt in attempts:
        with pytest.raises(ModelError, match=rf"{name}: cannot be read as JSON \(values are nested more than 64"):
            attempt()
