"""A model's folder with links, or without a component: links are followed and reported, a missing part is an error."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.cli import main
from safeflux.errors import ModelError
from safeflux.plan.status import State
from tests.baking.conftest import NAME
from tests.helpers.policies import BLADES


def draws_guarded(target, base_transformer, bits_of):
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    loaded = FluxPipeline.from_pretrained(target, local_files_only=True, **absent)
    return bits_of(loaded.transformer) != bits_of(base_transformer)


def test_linked_folders_and_files_go_along_and_are_named(folder, store, base_transformer, bits_of):
    shared, blobs = folder.parent / "shared", folder.parent / "blobs"
    (folder / "vae").rename(shared)
    (folder / "vae").symlink_to("../shared")
    blobs.mkdir()
    for path in (folder / "transformer").iterdir():  # as in a snapshot of the hub's cache
        path.rename(blobs / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    target = folder.parent / "guarded"
    made = bake(folder, target, BLADES, store=store)
    assert made.links[Path("vae")] == shared
    assert {str(path) for path in made.links} == {"vae", "transformer/config.json", f"transformer/{NAME}.safetensors"}
    check_bake(folder, target, BLADES, store=store)
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED
    assert not any(path.is_symlink() for path in target.rglob("*"))
    shutil.rmtree(shared)
    shutil.rmtree(blobs)
    assert draws_guarded(target, base_transformer, bits_of)


def test_the_command_says_which_links_lead_out(folder, store, tmp_path):
    (folder / "vae").rename(tmp_path / "shared")
    (folder / "vae").symlink_to("../shared")
    (tmp_path / "blades.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: blades\ncategories: {weapons: {masks: [blades]}}\n"
    )
    asked = ["--policy", str(tmp_path / "blades.yaml"), "--store", str(store)]
    done = CliRunner().invoke(main, ["bake", str(folder), str(tmp_path / "guarded"), *asked])
    assert f"copied from outside SRC, through a link: vae -> {tmp_path / 'shared'}" in done.stdout
    told = json.loads(CliRunner().invoke(main, ["bake", str(folder), str(tmp_path / "b"), *asked, "--json"]).stdout)
    assert told["links"] == {"vae": str(tmp_path / "shared")}


@pytest.mark.parametrize("inside", ["vae/config.json", f"vae/{NAME}.safetensors", "transformer/more.txt", "LICENSE"])
def test_a_dangling_link_is_an_error_and_nothing_is_written(folder, store, inside):
    (folder / inside).unlink(missing_ok=True)
    (folder / inside).symlink_to("../../blobs/0123")
    with pytest.raises(ModelError, match=rf"{inside}: is a link to \.\./\.\./blobs/0123, which does not exist"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)
    assert not list(folder.parent.glob("*guarded*"))


def test_a_component_that_is_not_there_is_an_error(folder, store):
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match=r"names the component 'vae'.*bake its transformer alone"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)
    bake(folder / "transformer", folder.parent / "guarded", BLADES, store=store)


def test_a_component_that_git_left_behind_or_that_lost_a_shard_is_an_error(folder, store):
    weights = folder / "vae" / f"{NAME}.safetensors"
    whole = weights.read_bytes()
    weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 999\n")
    with pytest.raises(ModelError, match=r"vae/.*is a Git LFS pointer.*git lfs pull"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)
    weights.write_bytes(whole)
    (folder / "vae" / f"{NAME}.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(ModelError, match=r"index\.json: names gone\.safetensors, which is missing"):
        bake(folder, folder.parent / "guarded", BLADES, store=store)
