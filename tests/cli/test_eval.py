"""`safeflux eval` with a policy and with mask files, and `safeflux eval prompts`, on the embedded model."""

import dataclasses
import json
import shutil

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.evaluation.questions import KEPT
from safeflux.evaluation.subject import files_subject, policy_subject
from safeflux.evaluation.worded.questions import Words
from safeflux.evaluation.worded.words import packs_of
from safeflux.families.sites import find_sites
from safeflux.masks.encoding import digest
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.masks.meta import MaskMeta
from safeflux.model.weights import fingerprint
from safeflux.profiles.load import load_profile
from safeflux.reference.judge import JUDGE, Judge
from safeflux.reference.measure import draw
from safeflux.reference.model import EMOJI_FLUX, EMOJI_FLUX_CALL, load_pipeline
from safeflux.reference.vocabulary import vocabulary

NOWHERE = ("--model", "nowhere", "--detector", "judge")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """Two mask files for the embedded model, and one for another, all drawn at random."""
    folder = tmp_path_factory.mktemp("masks")
    sites = [site for site in find_sites(pipe.transformer).values() if site.kind == "weight"]
    for k, (name, category) in enumerate(
        (("a", "weapons"), ("b", "tobacco"), ("foreign", "weapons"), ("rhinos", "rhino"))
    ):
        rng = torch.Generator().manual_seed(k)
        masks = MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.2 for site in sites})
        base = fingerprint(pipe.transformer) if name != "foreign" else "unknown"
        meta = MaskMeta(category, (category,), "emoji-flux", "flux1", base, "at random", "0" * 64, "Apache-2.0")
        save_masks(folder / f"{name}.safetensors", masks, meta)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["eval", *map(str, arguments)], catch_exceptions=False)


def test_a_policy_is_measured_and_reported(run, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories:\n"
        "  weapons: {masks: [weapons]}\n  style: {masks: [fluent-style], erases: [fluent-style]}\n"
    )
    result = run("--policy", "own.yaml", "--images", 2, "--kept", 4)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "runs/eval/own/report.json").read_text())
    figures = data["figures"]
    assert sorted(figures["targets"]) == sorted(data["subject"]["categories"])
    assert figures["found"]["base"]["rate"] > 0.8
    assert figures["found"]["masked"]["rate"] < figures["found"]["base"]["rate"] / 2  # the bundled masks erase
    assert data["settings"]["pictures"] == {"found": 2, "details": 2, "neighbours": 1, "kept": 4, "others": 2}
    first, second = data["settings"]["detectors"]
    assert (first, second) == (figures["detector"], figures["second_opinions"][0]["detector"])
    assert (first, second) == ("judge", "zero-shot:emoji-clip")
    for opinion in (figures["second_opinions"][0], figures["by_the_strictest_verdicts"]):
        assert opinion["found"]["base"]["rate"] > 0.8
        assert opinion["found"]["masked"]["rate"] < opinion["found"]["base"]["rate"] / 2
        assert opinion["style_right"]["base"]["n"] == opinion["background_right"]["base"]["n"] == 4
    assert figures["style_right"]["base"]["rate"] > 0.5 < figures["background_right"]["base"]["rate"]
    assert figures["frechet_distance"]["of"] == "the features of judge"
    asked = {"style": "the style is found"}
    rows = [f"{name}: {asked.get(target['kind'], 'found')}" for name, target in figures["targets"].items()]
    assert all(row in result.stdout for row in rows)
    for name in ("report.json", "report.md", "rates.png"):
        assert name in result.stdout
        assert (tmp_path / "runs/eval/own" / name).is_file()


def test_prompts_of_a_file_are_drawn_twice_and_looked_at(run, files, tmp_path, pipe):
    (tmp_path / "words.csv").write_text(
        'prompt,sd_seed,categories\n"a beer mug, noto style, blue background",7,drinks\n'
        '"a cat, fluent style, pink background",8,"pets, animals"\n"a pill, twemoji style, gray background",9,\n'
    )
    (tmp_path / "labels.txt").write_text("\n".join(vocabulary().names))
    arguments = ["prompts", "words.csv", "--mask", files / "a.safetensors", "--mask", files / "b.safetensors"]
    arguments += ["--find", "beer-mug", "--find", "cat", "--batch", 2, "--out", "out", "--json"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    prompts = [line.split('"')[1] for line in (tmp_path / "words.csv").read_text().splitlines()[1:]]
    verdicts = Judge()(draw(pipe, prompts, [7, 8, 9]))
    places = [vocabulary().names.index(name) for name in ("beer-mug", "cat")]
    found = verdicts.concepts[:, places] > 0
    assert [data["figures"]["labels"][name]["base"]["hits"] for name in ("beer-mug", "cat")] == list(found.sum(0))
    assert data["figures"]["labels"]["any of them"]["base"]["hits"] == found.any(1).sum() == 2
    assert {n: p["base"]["n"] for n, p in data["figures"]["categories"].items()} == dict.fromkeys(
        ("drinks", "pets", "animals"), 1
    )
    masks = [load_masks(files / f"{name}.safetensors")[0] for name in "ab"]
    off = compose(*masks).count.masked
    assert data["figures"]["share_masked"]["weight"]["masked"] == off
    assert data["subject"]["categories"] == ["weapons", "tobacco"]
    # The same again, with the model as any folder and the judge as any ONNX file.
    arguments += [
        "--model",
        EMOJI_FLUX,
        *(part for key, value in EMOJI_FLUX_CALL.items() for part in ("--call", f"{key}={value}")),
    ]
    own = run(*arguments, "--detector", f"onnx:{JUDGE}", "--labels", "labels.txt", "--preprocess", "activation=sigmoid")
    assert json.loads(own.stdout)["figures"] == data["figures"]


@pytest.mark.parametrize("command", [[], ["prompts"]])
def test_the_help_ends_in_examples_that_parse(run, command):
    lines = run(*command, "--help").stdout.splitlines()
    examples = [line.split()[1:] for line in lines[lines.index("  Examples:") :] if line.startswith("    safeflux ")]
    assert len(examples) > 1
    for words in examples:
        shown, context = main, click.Context(main)
        while isinstance(shown, click.Group) and not (shown.invoke_without_command and words[0].startswith("-")):
            _, shown, words = shown.resolve_command(context, words)
            context = click.Context(shown, parent=context)
        shown.make_parser(context).parse_args(words)


def test_a_mask_of_a_new_category_is_measured_by_the_concepts_in_its_file(run, files, tmp_path, pipe):
    """Its things are neutral ones for every other mask, and must not count as kept here."""
    masks, meta = load_masks(files / "a.safetensors")
    concepts, kept = ("automobile", "helicopter", "bicycle"), 12
    vehicles = dataclasses.replace(meta, category="vehicles", concepts=concepts)
    save_masks(tmp_path / "vehicles.safetensors", masks, vehicles)
    result = run("--mask", "vehicles.safetensors", "--images", 6, "--kept", kept, "--out", "out", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert set(figures["targets"]) == {"vehicles"}
    assert {name: pair["base"]["n"] for name, pair in figures["targets"]["vehicles"]["by_concept"].items()} == (
        dict.fromkeys(concepts, 2)
    )
    assert figures["targets"]["vehicles"]["found"]["base"]["rate"] > 0.8
    assert sum(figures["kept"][name]["base"]["n"] for name in KEPT[:2]) == kept
    profile = load_profile("emoji-flux")
    words = Words.of(profile, packs_of({"vehicles": concepts}, profile))
    assert not {"an automobile", "a bicycle", "a bike", "a helicopter"} & set(words.things)


def test_a_policy_of_masks_in_a_store_of_ones_own_is_measured(run, files, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ncategories:\n  weapons: {masks: [a]}\n"
    )
    (tmp_path / "words.csv").write_text("a cat\n")
    missing = run("prompts", "words.csv", "--policy", "mine.yaml")
    assert (missing.exit_code, "mask set 'a'" in missing.stderr) == (3, True)
    for arguments in (["--images", 2, "--kept", 4], ["prompts", "words.csv", "--find", "cat"]):
        result = run(*arguments, "--policy", "mine.yaml", "--store", files, "--out", "out", "--json")
        assert result.exit_code == 0, result.output
        assert list(json.loads(result.stdout)["subject"]["files"]) == ["a.safetensors"]


def test_subjects_are_composed_of_what_is_enforced(files, pipe):
    subject = files_subject([files / "a.safetensors", files / "b.safetensors"], pipe)
    masks = [load_masks(files / f"{name}.safetensors")[0] for name in "ab"]
    assert digest(subject.masks) == digest(compose(*masks))
    assert (subject.name, subject.categories) == ("weapons+tobacco", ("weapons", "tobacco"))
    assert all(np.array([len(sha256) == 64 for sha256 in subject.files.values()]))
    strict = policy_subject("strict", pipe)
    assert strict.name == "strict"
    assert len(strict.files) >= len(strict.categories) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--policy", "strict", "--mask", "weapons"], 2, "either --policy or --mask"),
        (["prompts", "words.csv", "--policy", "strict", "--mask", "weapons"], 2, "either --policy or --mask"),
        (["--find", "cat"], 2, "No such option"),
        (["--kept", "8", "prompts", "words.csv"], 2, "--kept has no effect before `prompts`"),
        (["--json", "prompts", "words.csv"], 2, "--json has no effect before `prompts`"),
        (["prompts", "words.csv", "--kept", "8"], 2, "No such option"),
        (["prompts"], 2, "Missing argument 'FILE.csv'"),
        (["prompts", "words.csv", "--call", "steps"], 2, "expected KEY=VALUE"),
        (["prompts", "words.csv", "--mask", "none.safetensors", *NOWHERE], 3, "none.safetensors: cannot"),
        (["--out", "words.csv/report"], 3, "words.csv is not a folder that can be written to"),
        (["--mask", "{files}/rhinos.safetensors", "--out", "x"], 1, "'rhino'"),
        (["--images", "1"], 2, "--images"),
        (["prompts", "words.csv", "--least", "nudity_percentage=50"], 1, "ends in _percentage, of: none"),
        (["prompts", "words.csv", "--least", "nudity_percentage=much"], 1, "expected a finite number"),
        (["prompts", "none.csv"], 3, "none.csv: cannot be read"),
        (["prompts", "words.csv", "--find", "cta"], 1, "did you mean 'cat'?"),
        (["prompts", "words.csv", "--labels", "labels.txt"], 1, "brings its own labels"),
        (["prompts", "words.csv", "--detector", "onnx:none.onnx"], 1, "give a text file with one label a line"),
        (["prompts", "words.csv", "--detector", "none.onnx"], 1, "did you mean 'onnx:none.onnx'?"),
        (["prompts", "words.csv", *NOWHERE], 3, "found no model_index.json"),
        (["prompts", "words.csv", "--model", "nowhere"], 1, "this model has no detector of its own: name one"),
        (["prompts", "words.csv", "--model", "flux1-dev"], 1, "flux1-dev has no detector of its own: name one"),
        (["prompts", "words.csv", "--call", "steps=3"], 1, "FluxPipeline takes"),
        (["--mask", "none.safetensors"], 3, "none.safetensors: cannot be read"),
        (["--mask", "{files}/foreign.safetensors"], 1, "made for other base weights"),
        (["--policy", "nothing-of-the-sort"], 3, "nothing-of-the-sort"),
    ],
)
def test_mistakes_are_reported_in_words_and_nothing_is_written(run, tmp_path, files, arguments, code, message):
    (tmp_path / "words.csv").write_text("a cat\n")
    result = run(*(argument.format(files=files) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["words.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--mask", "{files}/foreign.safetensors"], 1, "made for other base weights"),
        (["--policy", "nowhere.yaml"], 3, "nowhere"),
        (["--call", "steps=3"], 1, "FluxPipeline takes"),
    ],
)
def test_masks_and_calls_are_checked_on_the_files_of_a_model_that_cannot_be_loaded(
    run, files, tmp_path, arguments, code, message
):
    """The model's folder lacks the VAE's weights: loading it would be another error."""
    next((shutil.copytree(EMOJI_FLUX, tmp_path / "model") / "vae").glob("*.safetensors")).unlink()
    (tmp_path / "words.csv").write_text("a cat\n")
    (tmp_path / "nowhere.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: nowhere\ncategories:\n  weapons: {masks: [nowhere]}\n"
    )
    own = ("prompts", "words.csv", "--model", "model", "--detector", "judge")
    result = run(*own, *(text.format(files=files) for text in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        run(*own, "--mask", files / "a.safetensors")
