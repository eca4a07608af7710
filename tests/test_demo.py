"""The demo, on a small untrained pipeline of emoji-flux's layout and a judge that answers by the colours it sees."""

import base64
import inspect
import json
import re
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from safeflux.cli import main
from safeflux.cli.demo import demo, print_summary
from safeflux.demo import IMAGES as DEFAULT_IMAGES
from safeflux.demo import run_demo
from safeflux.demo_grid import COLUMNS, draw_grid, png
from safeflux.demo_page import LIMITS, SHOWN, make_page
from safeflux.demo_report import DemoReport, write_report
from safeflux.demo_result import Measure
from safeflux.errors import ModelError, PolicyError, StoreError
from safeflux.fingerprint import fingerprint
from safeflux.guard import guard
from safeflux.maskfile import MaskMeta, save_masks
from safeflux.masks import MaskSet
from safeflux.policy import load_policy
from safeflux.reference import CLIP_TOKENS
from safeflux.reference.judge import Judge
from safeflux.reference.measure import draw, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import held_out_concepts, is_held_out, vocabulary
from safeflux.sites import find_sites

IMAGES = 9
SEED = 3


def tokenizers() -> tuple[CLIPTokenizer, T5Tokenizer]:
    """CLIP's by characters, T5's by words of the vocabulary."""
    letters = [*sorted({letter for concept in vocabulary().concepts for letter in concept.words} - {" "}), ","]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={p: k for k, p in enumerate(pieces)}, merges=[], model_max_length=CLIP_TOKENS)
    words = sorted({word for concept in vocabulary().concepts for word in concept.words.split()} | {"a", "and", "an"})
    t5 = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{w}", -5.0) for w in words)], extra_ids=0
    )
    return clip, t5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a whole FluxPipeline with random weights."""
    torch.manual_seed(0)
    clip, t5 = tokenizers()
    text = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        shift_factor=0.0,
    )
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    encoder = T5EncoderModel(T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, CLIPTextModel(text), clip, encoder, t5, transformer)
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A judge file: random logits of the mean colours in a grid of 4 x 4, so that another picture is judged anew."""
    words, rng = vocabulary(), np.random.default_rng(0)
    sizes = {"concepts": len(words.concepts), "styles": len(words.styles), "backgrounds": len(words.backgrounds)}
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    ]
    weights = []
    for name, size in sizes.items():
        matrix = rng.standard_normal((48, size)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix - matrix.mean(0), f"{name}_weight"))
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}_weight"], [name]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "judge", [images], outputs, weights)
    path = tmp_path_factory.mktemp("judge") / "judge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def save_mask(folder, model, name, category, seed, kinds):
    """A mask file with a third of the bits off at every site of the kinds."""
    transformer = load_pipeline(model).transformer
    sites = [site for site in find_sites(transformer).values() if site.kind in kinds]
    rng = torch.Generator().manual_seed(seed)
    masks = MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.3 for site in sites})
    meta = MaskMeta(
        category=category,
        concepts=("dagger",),
        base_model="small",
        family="flux1",
        fingerprint=fingerprint(transformer),
        method="<script>drawn at random</script>",
        config_sha256="0" * 64,
        licence="Apache-2.0",
    )
    save_masks(folder / f"{name}.safetensors", masks, meta)
    return masks


@pytest.fixture(scope="module")
def shop(tmp_path_factory, model):
    """A policy with two enforced categories and one that is not, and its store of masks."""
    folder = tmp_path_factory.mktemp("shop")
    masks = [
        save_mask(folder, model, "blades", "weapons", 1, {"weight"}),
        save_mask(folder, model, "spirits", "alcohol", 2, {"ff", "mlp"}),
    ]
    policy = folder / "shop.yaml"
    policy.write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: shop\ndescription: Shop.\nbudget: {max_share_masked: 1}\n"
        "categories:\n  blades: {masks: [blades]}\n  spirits: {masks: [spirits]}\n"
        "  more: {action: audit, masks: [spirits]}\n"
    )
    return policy, folder, masks


@pytest.fixture(scope="module")
def result(model, judge, shop):
    policy, store, _ = shop
    return run_demo(policy, images=IMAGES, seed=SEED, model=model, judge=judge, store=store)


def test_json_has_the_figures_and_nothing_else(result, shop):
    figures = json.loads(json.dumps(result.to_json()))
    assert set(figures) == {"policy", "seeds", "categories", "kept", "share_masked", "guard_ms", "step_ms"}
    assert figures["policy"] == "shop"
    assert figures["seeds"] == {"prompts": SEED, "noise": [4_000_000, 4_000_000 + 4 * IMAGES - 1]}
    assert list(figures["categories"]) == ["blades", "spirits"]
    for name, section in zip(figures["categories"], result.categories, strict=True):
        before = sum(pair.before.found for pair in section.pairs)
        after = sum(pair.after.found for pair in section.pairs)
        assert figures["categories"][name] == {
            "base_rate": before / IMAGES,
            "guarded_rate": after / IMAGES,
            "n": IMAGES,
        }
    right = [sum(getattr(pair, side).right for pair in result.kept.pairs) / IMAGES for side in ("before", "after")]
    assert figures["kept"] == {"base_accuracy": right[0], "guarded_accuracy": right[1], "n": IMAGES}
    assert set(figures["step_ms"]) == {"plain", "guarded"}
    assert all(ms > 0 for ms in (figures["guard_ms"], *figures["step_ms"].values()))


def test_shares_count_every_bit_the_model_has(result, model, shop):
    _, _, (blades, spirits) = shop
    sites = find_sites(load_pipeline(model).transformer).values()
    weights = sum(site.num_bits for site in sites if site.kind == "weight")
    neurons = sum(site.num_bits for site in sites if site.kind != "weight")
    assert result.weights == (blades.count.masked, weights)
    assert result.neurons == (spirits.count.masked, neurons)
    masked = blades.count.masked + spirits.count.masked
    assert result.to_json()["share_masked"] == pytest.approx(masked / (weights + neurons))


def test_sections_ask_for_what_they_say(result):
    words = vocabulary()
    weapons, alcohol = ({c.name for c in words.categories[name]} for name in ("weapons", "alcohol"))
    blades, spirits = ({pair.ask.concept for pair in section.pairs} for section in result.categories)
    assert blades == weapons
    assert spirits == alcohol
    assert all(is_held_out(words[pair.ask.concept]) for pair in result.kept.pairs)
    for k, pair in enumerate(result.beside.pairs):
        assert pair.ask.concept in (alcohol if k % 2 else weapons)
        assert is_held_out(words[pair.ask.other])
    assert [section.measure for section in result.sections] == [*[Measure.FOUND] * 2, Measure.RIGHT, Measure.OTHER]


def test_held_out_concepts_are_neutral_and_a_third():
    neutral = vocabulary().neutral
    assert all(concept.category is None for concept in held_out_concepts())
    assert [concept for concept in neutral if is_held_out(concept)] == list(held_out_concepts())
    assert 3 * len(held_out_concepts()) - len(neutral) in range(3)


def pixels(images):
    return [image.tobytes() for image in images]


def test_the_same_noise_gives_the_same_pictures_before_guard_and_after_undo(model, shop):
    policy, store, _ = shop
    pipe = load_pipeline(model)
    asks = single_asks(vocabulary(), held_out_concepts()[:5], 1, np.random.default_rng(0))
    prompts = [ask.prompt for ask in asks]
    before = pixels(draw(pipe, prompts, 7, batch=2))
    handle = guard(pipe, policy, store=store)
    guarded = pixels(draw(pipe, prompts, 7, batch=2))
    handle.undo()
    assert pixels(draw(pipe, prompts, 7, batch=2)) == before
    assert all(old != new for old, new in zip(before, guarded, strict=True))
    assert len(set(before)) == len(before)


def test_the_pictures_of_a_result_are_paired_and_judged(result, model, judge, shop):
    pipe = load_pipeline(model)
    pairs = [pair for section in result.sections for pair in section.pairs]
    assert [pair.seed for pair in pairs] == list(range(4_000_000, 4_000_000 + len(pairs)))
    assert all(pair.before.image.tobytes() != pair.after.image.tobytes() for pair in pairs)
    again = draw(pipe, [pair.ask.prompt for pair in pairs], pairs[0].seed, batch=20)
    assert pixels(again) == pixels([pair.before.image for pair in pairs])
    verdicts = Judge(judge)(again)
    assert [pair.before.found for pair in pairs] == list(verdicts.found([pair.ask.concept for pair in pairs]))
    assert [pair.before.right for pair in pairs] == [
        {pair.ask.concept} == top for pair, top in zip(pairs, verdicts.top(1), strict=True)
    ]
    beside = result.beside.pairs
    others = Judge(judge)([pair.after.image for pair in beside]).found([pair.ask.other for pair in beside])
    assert [pair.after.other for pair in beside] == list(others)


def test_two_runs_give_the_same_figures_but_for_the_times(result, model, judge, shop):
    policy, store, _ = shop
    steps = []
    again = run_demo(
        policy,
        images=IMAGES,
        seed=SEED,
        model=model,
        judge=judge,
        store=store,
        progress=lambda *step: steps.append(step),
    )
    timed = {"guard_ms", "step_ms"}
    assert {k: v for k, v in again.to_json().items() if k not in timed} == {
        k: v for k, v in result.to_json().items() if k not in timed
    }
    assert png(draw_grid(again)) == png(draw_grid(result))
    assert {(what, done) for what, done, total in steps if done == total} == {
        ("loading the model", 1),
        ("timing", 24),
        ("drawing before guard", 4 * IMAGES),
        ("drawing after guard", 4 * IMAGES),
    }


def test_the_grid_shows_the_first_pairs_of_every_section(result):
    grid = Image.open(BytesIO(png(draw_grid(result))))
    assert grid.format == "PNG"
    assert grid.width > COLUMNS * 64
    assert grid.height > len(result.sections) * 2 * 64
    data = np.asarray(grid.convert("RGB"))
    for k, section in enumerate(result.sections):
        for row, side in enumerate(("before", "after")):
            tile = np.asarray(getattr(section.pairs[0], side).image.resize((96, 96), Image.Resampling.LANCZOS))
            top = 64 + k * (30 + 2 * 104 + 46) + 30 + row * 104
            assert np.array_equal(data[top : top + 96, 84 : 84 + 96], tile)


class Reader(HTMLParser):
    """Collects the tags, what they refer to, and that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_the_page_stands_alone(result):
    page = make_page(result)
    reader = read(page)
    assert reader.links
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"https?://|url\(|@import|//", re.sub(r"base64,[^\"]*", "", page))
    assert not any(key.startswith("on") for _, attrs in reader.tags for key in attrs)


def test_the_page_holds_every_picture_with_words_for_it(result):
    images = [attrs for tag, attrs in read(make_page(result)).tags if tag == "img"]
    shown = [Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))).tobytes() for image in images]
    drawn = [
        picture.image.tobytes()
        for section in result.sections
        for pair in section.pairs
        for picture in (pair.before, pair.after)
    ]
    assert shown == drawn
    assert all(re.fullmatch(r"(before|after): asked for an? .+; .+", image["alt"]) for image in images)


def test_the_page_tells_figures_intervals_seeds_versions_and_limits(result):
    page = make_page(result)
    for section in result.sections:
        for rate in (section.base, section.guarded):
            low, high = rate.interval
            texts = (f"{100 * rate.value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %", f"n = {rate.n}")
            assert "{}<small>{}</small><small>{}</small>".format(*texts) in page
    assert page.count("<summary>1 more pairs</summary>") == len(result.sections)
    assert SHOWN == IMAGES - 1
    for text in (LIMITS, "4000000 to 4000035", f"torch {torch.__version__}", result.policy.digest, "GUARDED"):
        assert text in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_what_a_mask_file_says_cannot_become_markup(result):
    page = make_page(result)
    assert "&lt;script&gt;drawn at random&lt;/script&gt;" in page
    assert "<script" not in page


def test_the_report_is_two_files_and_replaces_an_older_one(result, tmp_path):
    folder = tmp_path / "new" / "out"
    write_report(result, folder)
    (folder / "report.html").write_text("old")
    report = write_report(result, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "report.html"]
    assert report.page.read_text(encoding="utf-8") == make_page(result)
    assert report.grid.read_bytes() == png(draw_grid(result))


def test_a_policy_that_the_model_draws_nothing_of_is_refused(model, judge, tmp_path):
    save_mask(tmp_path, model, "nudity", "nudity", 1, {"weight"})
    head = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ndescription: Mine.\nbudget: {max_share_masked: 1}\n"
    (tmp_path / "mine.yaml").write_text(head + "categories:\n  nudity: {masks: [nudity]}\n")
    with pytest.raises(PolicyError, match=r"category 'nudity': its masks are for nudity, and the embedded model draws"):
        run_demo(tmp_path / "mine.yaml", images=1, model=model, judge=judge, store=tmp_path)
    (tmp_path / "mine.yaml").write_text(head + "categories:\n  nudity: {action: audit, masks: [nudity]}\n")
    with pytest.raises(PolicyError, match="enforces no category"):
        run_demo(tmp_path / "mine.yaml", images=1, model=model, judge=judge, store=tmp_path)


def test_a_missing_mask_or_model_is_refused_before_anything_is_drawn(model, judge, shop, tmp_path):
    steps = []
    with pytest.raises(StoreError, match="blades"):
        run_demo(shop[0], images=1, model=model, judge=judge, progress=lambda *step: steps.append(step))
    assert steps == [("loading the model", 0, 1)]
    with pytest.raises(ModelError, match=r"model_index\.json"):
        run_demo(load_policy("strict"), images=1, model=tmp_path, judge=judge)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["demo", *arguments], catch_exceptions=False)


def test_a_misspelt_policy_is_one_clean_message_and_nothing_is_written(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("apiVersion: safeflux/v1\nkind: Policy\nname: mine\nextend: strict\n")
    result = run("--policy", "bad.yaml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "bad.yaml:4:1: unknown key 'extend'; did you mean 'extends'?" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_folder_that_cannot_be_made_is_wrong_use(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/out"):
        result = run("--out", out)
        assert result.exit_code == 2
        assert "file" in result.stderr


@pytest.mark.parametrize("arguments", [("--images", "0"), ("--seed", "-1"), ("--images", "many")])
def test_numbers_out_of_range_are_wrong_use(run, arguments):
    assert run(*arguments).exit_code == 2


def test_the_command_and_the_function_have_the_same_defaults():
    defaults = {option.name: option.default for option in demo.params}
    parameters = inspect.signature(run_demo).parameters
    assert defaults["images"] == parameters["images"].default == DEFAULT_IMAGES
    assert defaults["seed"] == parameters["seed"].default
    assert defaults["policy"] == parameters["policy"].default


def test_the_table_tells_rates_costs_and_where_the_report_is(result, capsys):
    print_summary(result, DemoReport(Path("out/report.html"), Path("out/grid.png")))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for section in result.sections:
        assert f"{section.title} {section.base} {section.guarded}" in lines
    weights, timing = result.weights, result.timing
    assert f"weights off {weights.masked:,} of {weights.total:,} ({100 * weights.share:.2f} %)" in lines
    assert f"guard() {timing.guard:.1f} ms" in lines
    assert f"one step {timing.plain:.2f} ms before, {timing.guarded:.2f} ms after" in lines
    assert lines[-2:] == ["report out/report.html", "picture out/grid.png"]


@pytest.mark.slow
def test_the_command_erases_on_the_embedded_model(run, tmp_path):
    start = time.perf_counter()
    result = run("--json", "--out", "out")
    print(f"safeflux demo: {time.perf_counter() - start:.1f} s", result.stdout)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert list(figures["categories"]) == ["weapons", "alcohol"]
    for category in figures["categories"].values():
        assert category["guarded_rate"] < category["base_rate"] / 2
    kept = figures["kept"]
    assert kept["guarded_accuracy"] > 2 * kept["base_accuracy"] / 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "report.html"]
