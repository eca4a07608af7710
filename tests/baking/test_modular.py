"""Modular pipelines, whose index says where each component is loaded from."""

import json
import shutil

import pytest

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.errors import ModelError
from safeflux.plan.status import State
from tests.baking.conftest import NAME
from tests.helpers.policies import BLADES


def test_a_modular_pipeline_keeps_its_parts_and_loads_its_own_transformer(folder, store):
    entries = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    for name in ("transformer", "vae"):
        entries[name] += [
            {"pretrained_model_name_or_path": "org/base", "subfolder": name, "type_hint": list(entries[name])}
        ]
    (folder / "modular_model_index.json").write_text(json.dumps(entries))
    target = folder.parent / "guarded"
    made = bake(folder, target, BLADES, store=store)
    assert not made.left_out
    assert (target / "vae" / f"{NAME}.safetensors").is_file()
    told = json.loads((target / "modular_model_index.json").read_text())
    assert told["transformer"][2]["pretrained_model_name_or_path"] is None
    assert told["vae"] == entries["vae"]
    check_bake(folder, target, BLADES, store=store)
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED
    shutil.copy(folder / "modular_model_index.json", target)
    found = verify_files(target, BLADES, store=store).status
    assert found.state is State.DEGRADED
    assert "loads 'transformer' from org/base" in found.faults[0]


def test_a_real_modular_pipeline_is_baked_and_draws_guarded(tmp_path):
    """As diffusers saves it, the index names the source's own folder: the copy must not load its transformer there."""
    from diffusers import ModularPipeline

    from safeflux.reference.model import EMOJI_FLUX

    pipe = ModularPipeline.from_pretrained(str(EMOJI_FLUX))
    pipe.load_components()
    pipe.save_pretrained(str(tmp_path / "model"), overwrite_modular_index=True)
    made = bake(tmp_path / "model", tmp_path / "guarded")
    assert not made.left_out
    assert verify_files(tmp_path / "guarded").status.state is State.GUARDED
    index = json.loads((tmp_path / "guarded" / "modular_model_index.json").read_text())
    assert str(tmp_path) not in json.dumps(index["transformer"])
    loaded = ModularPipeline.from_pretrained(str(tmp_path / "guarded"))
    loaded.load_components()
    before, after = (one.transformer.state_dict() for one in (pipe, loaded))
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    assert changed == made.plan.masks.count.masked


def with_entry(folder, name, entry):
    path = folder / "modular_model_index.json"
    content = json.loads((folder / "model_index.json").read_text())
    path.write_text(json.dumps(content | {name: entry}))


CLASS = ["diffusers", "FluxTransformer2DModel"]
ELSEWHERE = {
    "a folder outside": ("transformer", [*CLASS, {"subfolder": "../base"}]),
    "another revision of a repository": ("transformer", [*CLASS, {"repo": "org/base", "subfolder": "transformer"}]),
    "a second transformer": ("refiner", [*CLASS, {"pretrained_model_name_or_path": "org/base", "subfolder": ""}]),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_that_loads_another_transformer_is_a_fault(folder, store, name):
    target = folder.parent / "guarded"
    bake(folder, target, BLADES, store=store)
    with_entry(target, *ELSEWHERE[name])
    found = verify_files(target, BLADES, store=store).status
    assert found.state is State.DEGRADED
    assert f"index: loads {ELSEWHERE[name][0]!r} from" in found.faults[0]
    shutil.rmtree(target)
    with_entry(folder, *ELSEWHERE[name])
    if name == "a second transformer":
        with pytest.raises(ModelError, match="names a second FLUX transformer, 'refiner'"):
            bake(folder, target, BLADES, store=store)
        return
    bake(folder, target, BLADES, store=store)
    assert verify_files(target, BLADES, store=store).status.state is State.GUARDED
