"""Profiles: bundled ones against the classes of diffusers, files of one's own, folders, and mistakes."""

import inspect
import json

import diffusers
import pytest
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.laid_out import Shape, lay_out, memory_of
from safeflux.trainer.sampling.pipelines import PIPELINES

from safeflux.errors import ConfigError
from safeflux.families.sites import find_sites
from safeflux.profiles.load import bundled_profiles, load_profile, profile_of
from safeflux.profiles.schema import profile_schema
from safeflux.reference.model import EMOJI_FLUX, EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import vocabulary

REAL = [name for name in bundled_profiles() if name != "emoji-flux"]
PARAMETERS = {
    **dict.fromkeys(("flux1-dev", "flux1-krea-dev", "flux1-kontext-dev"), 11_901_408_320),
    "flux1-schnell": 11_891_178_560,
    **dict.fromkeys(("flux2-klein-4b", "flux2-klein-base-4b"), 3_875_544_576),
    "flux2-klein-9b": 9_078_581_248,
    "flux2-dev": 32_223_281_152,
    "chroma1-hd": 8_899_983_424,
}
BLOCKS = {
    **dict.fromkeys(("flux2-klein-4b", "flux2-klein-base-4b"), (5, 20)),
    "flux2-klein-9b": (8, 24),
    "flux2-dev": (8, 48),
}
"""Double and single blocks; the others have FLUX.1's."""
MINIMAL = "apiVersion: safeflux/v1\nkind: Profile\nname: mine\nmodel: somewhere\npipeline: FluxPipeline\n"


@pytest.mark.parametrize("name", REAL)
def test_the_configuration_is_that_of_a_model_of_this_size_and_its_sites_are_known(name):
    profile = load_profile(name)
    model = lay_out(profile.transformer, profile.training.dtype)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    double, single = BLOCKS.get(name, (19, 38))
    sites = find_sites(model)
    assert {site.kind for site in sites.values()} >= set(profile.training.kinds)
    blocks = {site.split(":")[0].split(".")[1] for site in sites if site.startswith("transformer_blocks.")}
    assert blocks == {str(k) for k in range(double)}
    singles = {site.split(":")[0].split(".")[1] for site in sites if site.startswith("single_transformer_blocks.")}
    assert singles == {str(k) for k in range(single)}


ALIKE = ("flux1-krea-dev", "flux1-kontext-dev")
"""Trained as flux1-dev is, but for the guidance."""


def test_models_of_one_shape_need_the_same_memory():
    dev = load_profile("flux1-dev")
    for one in map(load_profile, ALIKE):
        guidance = {"guidance": dev.training.guidance}
        assert (one.transformer, one.memory) == (dev.transformer, dev.memory)
        assert one.training.model_copy(update=guidance) == dev.training


@pytest.mark.parametrize("name", [name for name in REAL if name not in ALIKE])
def test_the_memory_is_the_sum_that_a_run_makes(name):
    profile = load_profile(name)
    options = profile.training.model_dump(exclude_none=True)
    memory = memory_of(Shape.of(profile), make_config(embedded_options(["weapons"]) | options, "test"))
    assert profile.memory.main == pytest.approx(memory.masks / 1e9, abs=0.06)
    needed = memory.total - memory.masks
    assert profile.memory.accelerator == pytest.approx(needed / 1e9, abs=0.06)


@pytest.mark.parametrize("name", bundled_profiles())
def test_the_call_is_one_that_the_pipeline_takes_and_the_trainer_knows_it(name):
    profile = load_profile(name)
    kind = getattr(diffusers, profile.pipeline)
    assert profile.call.keys() <= inspect.signature(kind.__call__).parameters.keys()
    assert profile.pipeline in PIPELINES
    assert profile.name == name
    assert profile.licence


@pytest.mark.parametrize("name", sorted(set(bundled_profiles()) - {"emoji-flux"}))
def test_the_name_of_a_profile_stands_for_one_commit(name):
    profile = load_profile(name)
    assert profile.source == f"{profile.model}@{profile.revision}"
    assert profile_of(profile.source) == profile_of(name) == profile
    other = profile_of(f"{profile.model}@{'0' * 40}")
    assert other.name == name
    assert other.revision == "0" * 40
    assert profile_of(profile.model) == profile.model_copy(update={"revision": None})


def test_the_embedded_model_is_one_among_others():
    profile = load_profile("emoji-flux")
    assert profile.call == EMOJI_FLUX_CALL
    assert profile.speech.slots["style"] == vocabulary().styles
    assert "a cat" not in profile.speech.neutral  # every third concept is held out
    assert "a cat" in profile.speech.held_out
    assert json.loads((EMOJI_FLUX / "model_index.json").read_text())["_class_name"] == profile.pipeline


def test_a_model_is_named_by_id_revision_file_or_folder(tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    by_id = load_profile(f"black-forest-labs/FLUX.2-klein-4B@{revision}")
    assert (by_id.name, by_id.source) == ("flux2-klein-4b", f"black-forest-labs/FLUX.2-klein-4B@{revision}")
    assert load_profile("black-forest-labs/flux.2-klein-4b").source == "black-forest-labs/FLUX.2-klein-4B"
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    assert load_profile(tmp_path / "mine.yaml").source == "somewhere"
    (tmp_path / "flux/transformer").mkdir(parents=True)
    (tmp_path / "flux/model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    config = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
    (tmp_path / "flux/transformer/config.json").write_text(json.dumps({**config, "guidance_embeds": False}))
    folder = load_profile(tmp_path / "flux")
    assert (folder.name, folder.source) == ("flux2-klein-9b", str(tmp_path / "flux"))
    config = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    (tmp_path / "flux/transformer/config.json").write_text(json.dumps({**config, "guidance_embeds": False}))
    for is_distilled, name in ((True, "flux2-klein-4b"), (False, "flux2-klein-base-4b")):
        index = {"_class_name": "Flux2KleinPipeline", "is_distilled": is_distilled}
        (tmp_path / "flux/model_index.json").write_text(json.dumps(index))
        assert load_profile(tmp_path / "flux").name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "callx: {}\n", ":6:1: unknown key 'callx'; did you mean 'call'?"),
        (MINIMAL + "training: {kinds: [attn]}\n", ":6:20: training.kinds.0: 'attn' is not known"),
        (MINIMAL + "training: {height: 512px}\n", ":6:20: training.height"),
        (MINIMAL + "revision: main\n", ":6:11: "),
        (MINIMAL.replace("name: mine\n", ""), ":1:1: the key 'name' is missing"),
    ],
)
def test_each_mistake_is_reported_where_it_stands(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(tmp_path / "mine.yaml")
    assert message in str(caught.value)


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'flux2-klein-4b'"):
        load_profile("flux2-klein4b")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomethingPipeline"}')
    with pytest.raises(ConfigError, match="got SomethingPipeline; write a profile for it"):
        load_profile(tmp_path)
    assert profile_schema()["additionalProperties"] is False
