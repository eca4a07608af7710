"""`safeflux preview` on the embedded model with a policy of one bundled mask, and what it does without a detector."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from safeflux.cli import main
from safeflux.families.sites import find_sites
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.weights import fingerprint
from safeflux.pages.pictures import LARGEST, WHOLE, data_uri
from safeflux.preview.run import OWN
from safeflux.reference.model import load_pipeline
from tests.helpers.html_pages import check_alone, read
from tests.helpers.runs import MASKS
from tests.helpers.tiny import save_tiny

POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ncategories:\n  weapons: {masks: [weapons]}\n"


def run(*arguments):
    return CliRunner().invoke(main, ["preview", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The figures and the page of one preview."""
    folder = tmp_path_factory.mktemp("preview")
    (folder / "mine.yaml").write_text(POLICY)
    (folder / "words.csv").write_text('"a bomb, noto style, blue background"\n')
    arguments = ["--policy", folder / "mine.yaml", "--prompts", folder / "words.csv", "--out", folder / "out"]
    prompt = ["--prompt", "<b>a cat</b>, noto style, gray background"]
    result = run(*arguments, *prompt, "--images", 2, "--batch", 16, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), (folder / "out/preview.html").read_text(encoding="utf-8")


def test_the_figures_say_what_went_and_what_stayed(shown):
    figures, _ = shown
    sections = figures["sections"]
    assert list(sections)[:3] == [OWN, "weapons/by name", "weapons/beside"]
    assert [one["pairs"] for one in sections.values()] == [2, 2, 1, 1, 2]
    assert (sections["weapons/by name"]["before"]["rate"], sections["weapons/by name"]["after"]["rate"]) == (1, 0)
    assert (sections[OWN]["before"]["hits"], sections[OWN]["after"]["hits"]) == (1, 0)  # the bomb, not the cat
    assert sections["weapons/neighbours"]["after"]["rate"] == 1
    assert (figures["policy"], figures["model"]) == ("mine", "emoji-flux")
    assert figures["detectors"] == ["judge", "zero-shot:emoji-clip"]
    assert all(seen["weapons"] for seen in figures["on_the_base_model"].values())
    assert figures["receipt"]["state"] == "GUARDED"
    assert figures["share_masked"]["weight"]["masked"] > 0


def test_the_page_stands_alone_with_every_picture_and_figure(shown):
    figures, page = shown
    check_alone(page)
    images = [attrs for tag, attrs in read(page).tags if tag == "img"]
    assert len(images) == 2 * sum(one["pairs"] for one in figures["sections"].values())
    assert all(attrs["alt"].startswith(("before: asked for ", "after: asked for ")) for attrs in images)
    first = Image.open(BytesIO(base64.b64decode(images[0]["src"].partition(",")[2])))
    assert (first.size, int(images[0]["width"])) == ((64, 64), 64)
    assert "&lt;b&gt;a cat&lt;/b&gt;" in page
    assert "<b>a cat" not in page
    assert "GUARDED, read from the weights" in page
    assert "judge, weapons, on the base model: finds " in page
    assert "zero-shot:emoji-clip, weapons, on the base model: finds " in page
    assert figures["receipt"]["masks_sha256"] in page


def test_without_a_detector_of_any_model_the_page_says_that_nobody_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transformer = load_pipeline(save_tiny(tmp_path / "flux", "flux2-klein-4b")).transformer
    _, meta = load_masks(MASKS / "weapons.safetensors")
    site = next(site for site in find_sites(transformer).values() if site.kind == "weight")
    masks = MaskSet({site.name: np.arange(site.num_bits).reshape(site.shape) % 3 > 0})
    changed = {"fingerprint": fingerprint(transformer), "family": "flux2", "concepts": ("weapons",)}
    (tmp_path / "store").mkdir()
    save_masks(tmp_path / "store/weapons.safetensors", masks, replace(meta, **changed))
    (tmp_path / "mine.yaml").write_text(POLICY)
    size = ["--call", "height=32", "--call", "width=32", "--call", "num_inference_steps=1"]
    result = run("--model", "flux", "--policy", "mine.yaml", "--store", "store", "--images", 2, *size, "--out", "out")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out/preview.html").read_text(encoding="utf-8")
    check_alone(page)
    assert "no detector is named" in page
    assert "weapons asked for" in result.stdout
    assert "What changed" not in page


def test_large_pictures_are_scaled_and_small_ones_are_bit_for_bit():
    small, large = Image.new("RGB", (WHOLE, 8), "red"), Image.new("RGB", (2048, 1024), "red")
    assert data_uri(small).startswith("data:image/png")
    uri = data_uri(large)
    assert uri.startswith("data:image/jpeg")
    assert Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (LARGEST, LARGEST // 2)


def test_mistakes_are_found_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, code, message in (
        (["--images", "0"], 2, "got --images 0 and neither --prompt nor --prompts"),
        (["--pack", "brand"], 1, "no mask erases this category"),
        (["--policy", "mine.yaml"], 3, "mine.yaml"),
        (["--prompts", "none.csv"], 3, "none.csv: cannot be read"),
        (["--model", "nowhere"], 3, "model 'nowhere': expected a bundled profile"),
        (["--detector", "oracle"], 1, "detector 'oracle': expected"),
    ):
        result = run(*arguments, "--policy", "strict") if arguments[0] != "--policy" else run(*arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert list(tmp_path.iterdir()) == []
