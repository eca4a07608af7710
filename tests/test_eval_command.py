"""`safeflux eval`, on the embedded model: with a policy, with mask files, and with prompts of a file."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.maskfile import MaskMeta, digest, load_masks, save_masks
from safeflux.masks import MaskSet, compose
from safeflux.reference.judge import JUDGE, Judge
from safeflux.reference.measure import draw
from safeflux.reference.model import CALL, MODEL, load_pipeline
from safeflux.reference.vocabulary import vocabulary
from safeflux.sites import find_sites
from safeflux.subject import files_subject, policy_subject
from safeflux.weights import fingerprint


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """Two mask files for the embedded model, and one for another, all drawn at random."""
    folder = tmp_path_factory.mktemp("masks")
    sites = [site for site in find_sites(pipe.transformer).values() if site.kind == "weight"]
    for k, (name, category) in enumerate((("a", "weapons"), ("b", "tobacco"), ("foreign", "weapons"))):
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
    result = run("--policy", "strict", "--images", 3, "--kept", 6)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "runs/eval/strict/report.json").read_text())
    figures = data["figures"]
    assert list(figures["targets"]) == data["subject"]["categories"]
    assert figures["found"]["base"]["rate"] > 0.8
    assert figures["found"]["masked"]["rate"] < figures["found"]["base"]["rate"] / 2  # the bundled masks erase
    assert data["settings"]["pictures"] == {"found": 3, "details": 3, "neighbours": 1, "kept": 6, "others": 3}
    asked = {"style": "the style is found"}
    told = [f"{name}: {asked.get(target['kind'], 'found')}" for name, target in figures["targets"].items()]
    assert all(row in result.stdout for row in told)
    for name in ("report.json", "report.md", "rates.png"):
        assert name in result.stdout
        assert (tmp_path / "runs/eval/strict" / name).is_file()


def test_prompts_of_a_file_are_drawn_twice_and_looked_at(run, files, tmp_path, pipe):
    (tmp_path / "words.csv").write_text(
        'prompt,sd_seed,categories\n"a beer mug, noto style, blue background",7,drinks\n'
        '"a cat, fluent style, pink background",8,"pets, animals"\n"a pill, twemoji style, gray background",9,\n'
    )
    (tmp_path / "labels.txt").write_text("\n".join(vocabulary().names))
    arguments = ["--mask", files / "a.safetensors", "--mask", files / "b.safetensors", "--prompts", "words.csv"]
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
    arguments += ["--model", MODEL, *(part for key, value in CALL.items() for part in ("--call", f"{key}={value}"))]
    own = run(*arguments, "--detector", JUDGE, "--labels", "labels.txt", "--preprocess", "activation=sigmoid")
    assert json.loads(own.stdout)["figures"] == data["figures"]


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
        (["--policy", "strict", "--mask", "a"], 2, "either --policy or --mask"),
        (["--detector", "opennsfw"], 2, "--detector is for use with --prompts"),
        (["--prompts", "words.csv", "--kept", "8"], 2, "--kept is for use without --prompts"),
        (["--prompts", "words.csv", "--call", "steps"], 2, "expected KEY=VALUE"),
        (["--images", "1"], 2, "--images"),
        (["--prompts", "words.csv", "--least", "nudity_percentage=50"], 1, "ends in _percentage, of: none"),
        (["--prompts", "words.csv", "--least", "nudity_percentage=much"], 1, "expected a number"),
        (["--prompts", "none.csv"], 1, "none.csv: cannot be read"),
        (["--prompts", "words.csv", "--find", "cta"], 1, "did you mean 'cat'?"),
        (["--prompts", "words.csv", "--labels", "labels.txt"], 1, "brings its own labels"),
        (["--prompts", "words.csv", "--detector", "none.onnx"], 1, "give a text file with one label a line"),
        (["--prompts", "words.csv", "--model", "nowhere"], 1, "found no model_index.json"),
        (["--prompts", "words.csv", "--call", "steps=3"], 1, "FluxPipeline takes"),
        (["--mask", "none.safetensors"], 1, "none.safetensors: cannot be read"),
        (["--mask", "{files}/foreign.safetensors"], 1, "made for other base weights"),
        (["--policy", "nothing-of-the-sort"], 1, "nothing-of-the-sort"),
    ],
)
def test_mistakes_are_told_in_words_and_nothing_is_written(run, tmp_path, files, arguments, code, message):
    (tmp_path / "words.csv").write_text("a cat\n")
    result = run(*(argument.format(files=files) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["words.csv"]
