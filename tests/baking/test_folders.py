"""Folders: links are followed and said, other weights are faults, and a copy keeps what it needs to load."""

import json
import os
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from benchmarks.bake_kills import REFUSALS
from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.cli import main
from safeflux.errors import BakeError, ModelError
from safeflux.plan.status import State
from tests.baking.conftest import NAME
from tests.helpers.layouts import to_bfl
from tests.helpers.policies import BLADES


def other_index(home, base):
    base.save_pretrained(home / "elsewhere", max_shard_size="40KB")
    content = json.loads((home / "elsewhere" / f"{NAME}.safetensors.index.json").read_text())
    content["weight_map"] = {k: f"../../base/{v}" for k, v in content["weight_map"].items()}
    shutil.rmtree(home / "elsewhere")
    (home / f"{NAME}.safetensors.index.fp16.json").write_text(json.dumps(content))


def torch_file(path):
    return lambda root, base: torch.save(base.state_dict(), root / path)


def tensor_file(path, names=lambda model: model.state_dict()):
    return lambda root, base: save_file(dict(names(base)), root / path)


OTHERS = {
    "variant": (lambda root, base: base.save_pretrained(root / "transformer", variant="fp16"), "fp16.safetensors"),
    "sharded variant": (
        lambda root, base: base.save_pretrained(root / "transformer", variant="fp16", max_shard_size="40KB"),
        "fp16-00001-of",
    ),
    "pickle": (lambda root, base: base.save_pretrained(root / "transformer", safe_serialization=False), f"{NAME}.bin"),
    "single file of BFL": (tensor_file("flux1.safetensors", to_bfl), "flux1.safetensors"),
    "single file inside": (tensor_file("transformer/flux1.sft", to_bfl), "flux1.sft"),
    "capital suffix": (tensor_file("FLUX.SAFETENSORS", to_bfl), "FLUX.SAFETENSORS"),
    "no suffix": (tensor_file("flux", to_bfl), "file flux:"),
    "a suffix of texts": (torch_file("notes.txt"), "notes.txt"),
    "checkpoint": (torch_file("last.ckpt"), "last.ckpt"),
    "hidden": (tensor_file(".flux.safetensors", to_bfl), r"\.flux\.safetensors"),
    "subfolder": (lambda root, base: base.save_pretrained(root / "base"), f"base/{NAME}.safetensors"),
    "inside another component": (tensor_file("vae/flux.safetensors", to_bfl), "vae/flux.safetensors"),
    "as another component": (lambda root, base: base.save_pretrained(root / "vae"), f"vae/{NAME}.safetensors"),
    "at the top": (lambda root, base: base.save_pretrained(root), f"file {NAME}.safetensors"),
    "another index": (lambda root, base: other_index(root / "transformer", base), "index.fp16.json"),
    "linked folder": (
        lambda root, base: (base.save_pretrained(root.parent / "base"), (root / "more").symlink_to("../base")),
        f"more/{NAME}.safetensors",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_weights_beside_guarded_ones_are_faults(folder, base_transformer, store, name):
    add, told = OTHERS[name]
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED
    add(target, base_transformer)
    found = verify_files(target, BLADES, store=store).status
    assert found.state is State.DEGRADED
    assert any(re.search(told, fault) for fault in found.faults), found.faults
    with pytest.raises(BakeError):
        check_bake(folder, target, BLADES, store=store)


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"hidden", "linked folder", "as another component"}))
def test_other_weights_of_the_source_do_not_go_along(folder, base_transformer, store, name):
    add, _ = OTHERS[name]
    target = folder.parent / "guarded"
    add(folder, base_transformer)
    if name == "inside another component":
        with pytest.raises(ModelError, match=r"vae/flux\.safetensors: is a second FLUX transformer"):
            bake(folder, target, BLADES, store=store)
        return
    made = bake(folder, target, BLADES, store=store)
    assert made.left_out
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED


@pytest.mark.parametrize(
    ("entry", "file"), [("_class_name", "own_code.py"), ("transformer", "transformer/own_code.py")]
)
def test_code_of_the_folder_that_its_index_names_goes_along_and_is_a_fault(folder, store, entry, file):
    (folder / file).write_text("class Own: ...\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, entry: ["own_code", "Own"]}))
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    assert (target / file).is_file()
    status = verify_files(target, BLADES, store=store).status
    assert status.state is State.DEGRADED
    assert status.faults[0].startswith(f"index: {entry!r} is of a class in {target / file}, and what that code draws")
    (target / "model_index.json").write_text(json.dumps(index))
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("modular_model_index.json", "own_code.Own"),
        ("modular_config.json", "own_code.Own"),
        ("transformer/config.json", "own_code.Own"),
        ("vae/config.json", "org/other--own_code.Own"),
    ],
)
def test_code_that_a_configuration_names_is_a_fault(folder, store, config, place):
    path = folder / config
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | {"auto_map": {"AutoModel": place}}))
    (path.parent / "own_code.py").write_text("class Own: ...\n")
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    status = verify_files(target, BLADES, store=store).status
    assert status.state is State.DEGRADED
    assert f"index: '{config}: AutoModel' is of a class in" in status.faults[0]
    (target / config).with_name("own_code.py").unlink()
    assert verify_files(target, BLADES, store=store).status.state is (
        State.DEGRADED if "--" in place else State.GUARDED
    )


@pytest.mark.parametrize("inside", ["transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_settings_that_were_changed_after_baking_are_a_fault(folder, store, inside):
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    path = target / inside
    settings = path.read_bytes()
    for change in (lambda: path.write_bytes(settings + b" "), path.unlink):
        change()
        status = verify_files(target, BLADES, store=store).status
        assert status.state is State.DEGRADED
        assert status.faults == (
            f"file {inside}: has other settings than when it was baked, or is gone; bake the model again",
        )
        if inside != "transformer/config.json":  # the transformer alone has no other part
            assert verify_files(target / "transformer", BLADES, store=store).status.state is State.GUARDED
    path.write_bytes(settings)
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED


def test_the_command_exits_1_and_names_the_file(folder, base_transformer, store, tmp_path):
    (tmp_path / "blades.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: blades\ncategories: {weapons: {masks: [blades]}}\n"
    )
    asked = ["--policy", str(tmp_path / "blades.yaml"), "--store", str(store)]
    bake(folder, tmp_path / "guarded", tmp_path / "blades.yaml", store=store)
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "guarded"), *asked]).exit_code == 0
    base_transformer.save_pretrained(tmp_path / "guarded" / "transformer", variant="fp16")
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "guarded"), *asked])
    assert done.exit_code == 1
    assert f"file transformer/{NAME}.fp16.safetensors: other weights" in done.stdout


def test_texts_that_begin_as_weights_might_go_along(folder, store):
    """The ninth byte of a safetensors file is a brace; that of a text may be one too."""
    for name, text in (("template.jinja", "{% if a {{ b }}"), ("NOTES", "12345678{"), ("pipeline.py", "def f(): {}")):
        (folder / name).write_text(text)
    made = bake(folder, folder.parent / "guarded", BLADES, store=store)
    assert not made.left_out
    assert (folder.parent / "guarded" / "template.jinja").is_file()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".gguf", ".safetensors"])
def test_a_flux_among_the_files_of_another_component_is_found_unread(folder, base_transformer, store, suffix):
    from gguf import GGMLQuantizationType

    from tests.helpers.ggufs import write_gguf

    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    path, tensors = target / "vae" / f"extra{suffix}", to_bfl(base_transformer)
    if suffix == ".gguf":
        write_gguf(path, tensors, GGMLQuantizationType.F16)
    elif suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    found = verify_files(target, BLADES, store=store).status
    assert found.state is State.DEGRADED
    assert f"vae/extra{suffix}" in found.faults[0]


def test_a_pipeline_without_its_configuration_or_with_a_damaged_component_is_refused(folder, store):
    weights = folder / "vae" / f"{NAME}.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"vae/.*cannot be read as safetensors"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)
    weights.write_bytes(whole)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"transformer: has no config\.json"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)


def test_permissions_are_those_of_the_source_and_of_the_process_and_never_wider(folder, bfl, store, tmp_path):
    weights = folder / "transformer" / f"{NAME}.safetensors"
    weights.chmod(0o600)
    (folder / "vae").chmod(0o750)
    bfl.chmod(0o440)
    before = os.umask(0o022)
    try:
        bake(folder, tmp_path / "one", BLADES, store=store)
        bake(bfl, tmp_path / "one.safetensors", BLADES, store=store)
        os.umask(0o077)
        bake(folder, tmp_path / "two", BLADES, store=store)
    finally:
        os.umask(before)

    def mode(path):
        return path.stat().st_mode & 0o777

    assert mode(tmp_path / "one" / "transformer" / f"{NAME}.safetensors") == 0o600
    assert (
        mode(tmp_path / "one" / "transformer" / "config.json") == mode(folder / "transformer" / "config.json") & 0o644
    )
    assert mode(tmp_path / "one" / "vae") == 0o750
    assert mode(tmp_path / "one.safetensors") == 0o440
    assert all(mode(path) & 0o077 == 0 for path in (tmp_path / "two").rglob("*"))


SOURCE_EDITS = {
    "weights": lambda root: (root / "transformer" / f"{NAME}.safetensors").touch(),
    "a part": lambda root: (root / "vae" / "config.json").write_text("{}"),
    "one more file": lambda root: (root / "NOTES.md").write_text("new"),
    "one file less": lambda root: (root / "vae" / "config.json").unlink(),
}


@pytest.mark.parametrize("name", SOURCE_EDITS)
def test_a_source_that_is_edited_while_it_is_baked_is_noticed(folder, store, name):
    def edit(what, done, total, edits=[SOURCE_EDITS[name]]):  # noqa: B006 - once
        if edits:
            edits.pop()(folder)

    with pytest.raises(BakeError, match="changed while it was read"):
        bake(folder, folder.parent / "guarded", BLADES, store=store, progress=edit)
    assert not list(folder.parent.glob("*guarded*"))


def test_a_target_that_appears_meanwhile_is_not_replaced_without_overwrite(bfl, store, tmp_path):
    target = tmp_path / "guarded.safetensors"

    def appear(*_):
        target.write_bytes(b"theirs")

    with pytest.raises(BakeError, match=rf"{REFUSALS[1]}, and was not replaced.*--overwrite"):
        bake(bfl, target, BLADES, store=store, progress=appear)
    assert target.read_bytes() == b"theirs"
    bake(bfl, target, BLADES, store=store, progress=appear, overwrite=True)
    check_bake(bfl, target, BLADES, store=store)


def test_files_that_another_tool_wrote_anew_are_verified_with_their_base(bfl, store, tmp_path):
    target = tmp_path / "guarded.safetensors"
    bake(bfl, target, BLADES, store=store)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(target).items()}, target)
    with pytest.raises(ModelError, match=r"has no stamp of safeflux with its base model.*--base"):
        verify_files(target, BLADES, store=store)
    assert verify_files(target, BLADES, store=store, base=bfl).status.state is State.GUARDED
    shown = CliRunner().invoke(main, ["verify", "--help"]).stdout
    assert "--base flux1-dev.safetensors" in shown


@pytest.mark.parametrize(
    "command",
    [
        "bake",
        "verify",
        "onnx export",
        "audit verify",
        *(f"mask {name}" for name in ("show", "card", "diff", "compose", "export", "import", "sign", "verify")),
    ],
)
def test_help_ends_in_examples(command):
    shown = CliRunner().invoke(main, [*command.split(), "--help"]).stdout
    assert f"\n    safeflux {command} " in shown[shown.index("Example") :]


def test_a_transformer_that_loads_is_what_was_verified(folder, store):
    """Every way of diffusers into a baked folder: the usual one draws guarded, each other one finds nothing."""
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    FluxTransformer2DModel.from_pretrained(target, subfolder="transformer")
    for options in ({"variant": "fp16"}, {"use_safetensors": False}):
        with pytest.raises((OSError, ValueError)):
            FluxTransformer2DModel.from_pretrained(target, subfolder="transformer", **options)
