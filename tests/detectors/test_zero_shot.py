"""CLIP, SigLIP and classifiers of transformers as detectors: small real models, read from folders."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPForImageClassification,
    CLIPModel,
    SiglipModel,
)

from safeflux.detectors.base import Wanted
from safeflux.detectors.specs import open_detector
from safeflux.errors import SafeFluxError
from tests.helpers.zero_shot import save_classifier, save_clip, save_siglip

WORDS = {"dagger": ("a dagger",), "owl": ("an owl",), "crown": ("a crown",)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder a kind of model."""
    home = tmp_path_factory.mktemp("models")
    save_classifier(home / "classifier", ["revolver", "owl", "crown"])
    save_classifier(home / "multi", ["revolver", "owl", "crown"], multi=True)
    return {"clip": save_clip(home / "clip"), "siglip": save_siglip(home / "siglip"), "home": home}


def pictures(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (24, 16 + 4 * k, 3), dtype=np.uint8)) for k in range(count)]


def logits(kind, folder, texts, images):
    """What the model itself says of each picture and text."""
    model = kind.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=64, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)


def test_clip_scores_are_the_log_odds_of_its_own_softmax(folders):
    images = pictures(5)
    wanted = Wanted(WORDS, neutral=("a cat", "an owl"), templates=("a photo of {}",))
    detector = open_detector(f"zero-shot:{folders['clip']}", wanted)
    texts = ["a photo of a dagger", "a photo of an owl", "a photo of a crown", "a photo of a cat", "a photo of"]
    chances = log_softmax(logits(CLIPModel, folders["clip"], texts, images).logits_per_image.numpy(), axis=1)[:, :3]
    odds = chances - np.log1p(-np.exp(chances.astype(np.float64)))
    assert detector.concepts == ("dagger", "owl", "crown")
    np.testing.assert_allclose(detector(images), odds, rtol=1e-3, atol=1e-3)
    assert (detector.found(images, ["owl", "dagger"]) == (np.exp(chances) > 0.5)[:, [1, 0]]).all()


def test_siglip_scores_are_its_own_logits(folders):
    images = pictures(5)
    detector = open_detector(f"zero-shot:{folders['siglip']}", Wanted(WORDS, templates=("{}",)))
    own = logits(SiglipModel, folders["siglip"], ["a dagger", "an owl", "a crown"], images).logits_per_image
    np.testing.assert_allclose(detector(images), own.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_score_depends_on_its_picture_alone_in_any_batch(folders, kind):
    detector = open_detector(f"zero-shot:{folders[kind]}", Wanted(WORDS, neutral=("a cat",)))
    images = pictures(40)  # more than one batch
    together = detector(images)
    assert together.std(axis=0).min() > 0.01
    np.testing.assert_allclose(together[[3, 37]], detector([images[3], images[37]]), rtol=1e-4, atol=1e-4)
    assert detector([]).shape == (0, 3)


def test_words_and_templates_of_a_concept_are_averaged(folders):
    words = {"dagger": ("a dagger", "a knife"), "owl": ("an owl",)}
    one = open_detector(f"zero-shot:{folders['siglip']}", Wanted(words, templates=("{}", "a drawing of {}")))
    model, tokenizer = SiglipModel.from_pretrained(folders["siglip"]).eval(), one._tokenizer
    texts = ["a dagger", "a drawing of a dagger", "a knife", "a drawing of a knife"]
    tokens = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        rows = model.get_text_features(**tokens).pooler_output
        mean = torch.nn.functional.normalize(torch.nn.functional.normalize(rows, dim=1).mean(0), dim=0)
    np.testing.assert_allclose(one._texts[0], mean.numpy(), atol=1e-5)


def test_a_classifier_gives_its_own_chances(folders):
    images = pictures(3)
    own = {}
    for name in ("classifier", "multi"):
        folder = folders["home"] / name
        pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            own[name] = CLIPForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
        detector = open_detector(f"classifier:{folder}")
        assert detector.concepts == ("revolver", "owl", "crown")
        expected = own[name].softmax(1) if name == "classifier" else own[name].sigmoid()
        np.testing.assert_allclose(detector(images), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "wanted", "message"),
    [
        ("zero-shot:{clip}", Wanted(), "expected at least one concept in words"),
        ("zero-shot:{clip}", Wanted({"owl": ()}), "expected at least one concept in words"),
        ("zero-shot:{clip}", Wanted(WORDS, templates=("a photo",)), "expected {} where the words go"),
        ("zero-shot", Wanted(WORDS), "expected a folder or a hub id"),
        ("zero-shot:{home}/classifier", Wanted(WORDS), "save_pretrained` of transformers"),
        ("zero-shot:org/clip-of-nobody", Wanted(WORDS), "hf download org/clip-of-nobody"),
        ("zero-shot:org/clip@abc", Wanted(WORDS), "hf download org/clip --revision abc"),
        ("classifier:{home}/nowhere", Wanted(), "does not exist"),
        ("classifier:{clip}", Wanted(), "has no weights for classifier"),
        ("classifier:{home}/multi", Wanted(settings={"size": "8,8"}), "brings its own labels"),
        ("zero-shot:{clip}", Wanted(WORDS, settings={"size": "8,8"}), "brings its own preprocessing"),
    ],
)
def test_each_mistake_has_one_clear_error(folders, spec, wanted, message):
    with pytest.raises(SafeFluxError) as caught:
        open_detector(spec.format(**folders), wanted)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
