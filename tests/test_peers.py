"""The rivals of the masks in benchmarks/peers: their formulas, and that each leaves the model as it was."""

import numpy as np
import pytest
import torch
from PIL import Image
from safeflux.trainer.sampling.rollout import step_inputs

from benchmarks.peers.attacking import Attacks, OneStep
from benchmarks.peers.chart import write_pictures, write_table
from benchmarks.peers.figures import ROWS, Summary, attacked, is_first, made_in, measured
from benchmarks.peers.material import Material
from benchmarks.peers.measuring import BASE, Peers, Report, subsets_of
from benchmarks.peers.methods import METHODS
from benchmarks.peers.methods.adapters import Adapter, layers_of
from benchmarks.peers.methods.ant import intersected
from benchmarks.peers.methods.detector import Watched
from benchmarks.peers.methods.erase_anything import TAU, turned_contrast
from benchmarks.peers.methods.fia import choose, energy, fuse, saliency
from benchmarks.peers.methods.gem import triplet
from benchmarks.peers.methods.looking import attention, matched, own_tokens, seen
from benchmarks.peers.methods.mace import Moments, fused, refined
from benchmarks.peers.methods.safree import Projected, belongs, onto
from benchmarks.peers.methods.sld import Steered
from benchmarks.peers.methods.spm import Membrane
from benchmarks.peers.methods.uce import edited
from benchmarks.peers.page import write_page
from safeflux.evaluation.attacks.base import Size
from safeflux.evaluation.attacks.kinds.learned import NewWord
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.questions import Sizes
from safeflux.rates import Rate
from safeflux.reference.judge import Judge
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

PROMPTS = ["a cigarette, noto style, blue background", "a cat, fluent style, red background"]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def target():
    return vocabulary().targets["tobacco"]


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def base(pipe):
    return pixels(draw(pipe, PROMPTS, 0))


FAST = {"MCE": {"lr": 4.0}, "FIA": {"pictures": 4}}
"""Settings with which little is enough; gates begin at 3, and those below 0 are closed."""


@pytest.mark.peers
@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_pictures_while_it_is_on_and_leaves_the_model_as_it_was(name, pipe, target, base):
    method = METHODS[name]
    settings = {**method.grid[-1], **({"steps": 1} if "steps" in method.grid[-1] else {}), **FAST.get(name, {})}
    weights = [parameter.clone() for parameter in pipe.transformer.parameters()]
    made = method.make(Material(pipe, batches=1, size=4), [target], settings)
    parts = [made] if name == "FIA" else [made, made]  # what two targets share stays on there
    both = method.combine(Material(pipe), parts, settings) if method.combine else made
    for each in (made, both):
        with each.drawing(pipe) as drawing:
            assert (pixels(draw(drawing, PROMPTS, 0)) != base).any()
    assert made.num_bytes > 0
    assert all(torch.equal(*pair) for pair in zip(pipe.transformer.parameters(), weights, strict=True))
    assert np.array_equal(pixels(draw(pipe, PROMPTS, 0)), base)


def test_an_edited_map_reads_a_concept_as_its_anchor_and_keeps_the_rest():
    rng = torch.Generator().manual_seed(0)
    w, c, a, r = (torch.randn(size, generator=rng).double() for size in ((5, 16), (3, 16), (3, 16), (8, 16)))
    found = edited(w, c, a, r, {"preserve": 1.0, "ridge": 1e-9})
    assert torch.allclose(c @ found.T, a @ w.T, atol=1e-4)
    assert torch.allclose(r @ found.T, r @ w.T, atol=1e-4)
    stiff = edited(w, c, a, r, {"preserve": 1.0, "ridge": 1e9})
    assert torch.allclose(stiff, w, atol=1e-4)


def test_steering_follows_its_formula(pipe):
    material = Material(pipe)
    condition = material.encode(PROMPTS)
    tokens, pooled = (
        torch.stack(each) for each in zip(material.mean([""]), material.mean(["a cigarette"]), strict=True)
    )
    at = material.noised(material.pictures(condition))
    with torch.no_grad():
        prompt = material.velocity(pipe.transformer, at, condition)
        empty, concept = (
            material.velocity(pipe.transformer, at, material.encode([text] * 2)) for text in ("", "a cigarette")
        )
        settings = {"threshold": 0.1, "scale": 2.0, "momentum": 0.0, "warm_up": 0}
        inputs = step_inputs(material.sampler, at.x, at.sigma, condition)
        (found,) = Steered(pipe.transformer, material.sampler.sigmas, tokens, pooled, settings)(**inputs)
    difference = prompt - concept
    scale = torch.where(difference < 0.1, (2 * difference.abs()).clamp(max=1), 0)
    assert torch.allclose(found, prompt - scale * (concept - empty), atol=1e-5)


def test_a_membrane_is_as_strong_as_the_prompt_is_like_its_target(pipe):
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 3)})
    membrane = Membrane.on_blocks(model, torch.eye(2, 4))
    ((down, up),) = membrane.layers.values()
    torch.nn.init.ones_(up)
    x = torch.randn(2, 5, 4)
    plain = model["blocks"](x)
    membrane.strength = membrane.nearness(torch.tensor([[3.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    with membrane.on(model):
        shown = model["blocks"](x)
    assert torch.allclose(shown[0], plain[0] + x[0] @ down.T)
    assert torch.equal(shown[1], plain[1])
    assert torch.equal(model["blocks"](x), plain)


def test_subsets_are_all_of_one_and_some_of_the_others():
    found = subsets_of("abcd", [1, 2, 4], 3)
    assert [len(each) for each in found] == [1] * 4 + [2] * 3 + [4]
    assert len(set(found)) == len(found)


def test_an_adapter_adds_its_product_and_is_merged_to_the_same_pictures(pipe):
    material = Material(pipe)
    adapter = Adapter.new(pipe.transformer, layers_of(pipe.transformer, "transformer_blocks", ("add_k_proj",)), 2)
    assert len(adapter.layers) == len(pipe.transformer.transformer_blocks)
    for _, up in adapter.layers.values():
        torch.nn.init.normal_(up)
    condition = material.encode(PROMPTS)
    at = material.noised(torch.randn(2, *material.sampler.shape))
    with torch.no_grad():
        plain = material.velocity(pipe.transformer, at, condition)
        with adapter.on(pipe.transformer):
            shown = material.velocity(pipe.transformer, at, condition)
        with adapter.merged(material).drawing(pipe):
            merged = material.velocity(pipe.transformer, at, condition)
        assert torch.equal(material.velocity(pipe.transformer, at, condition), plain)
    assert torch.allclose(shown, merged, atol=1e-4)
    assert not torch.allclose(shown, plain, atol=1e-2)


def test_attention_is_what_the_model_computes(pipe):
    """Uniform values that are one at a single text token come out of the block as the attention it gets."""
    material = Material(pipe)
    condition = material.encode(PROMPTS)
    at = material.noised(torch.randn(2, *material.sampler.shape))
    attn = pipe.transformer.transformer_blocks[0].attn
    name, place = "transformer_blocks.0.attn.to_out.0", 2

    def flat(_, given, out):
        return torch.zeros_like(out)

    def lit(_, given, out):
        shown = torch.zeros_like(out)
        shown[:, place] = 1
        return shown

    handles = [attn.to_v.register_forward_hook(flat), attn.add_v_proj.register_forward_hook(lit)]
    with torch.no_grad(), seen(pipe.transformer, [name]) as found:
        _, maps = attention(material, pipe.transformer, at, condition)
    for handle in handles:
        handle.remove()
    given = found[name][0].unflatten(-1, (attn.heads, -1))
    assert torch.allclose(given[..., 0].movedim(1, 2), maps[0][..., place], atol=1e-5)


def test_a_concepts_tokens_are_those_that_its_anchor_has_not(pipe):
    material = Material(pipe)
    prompts, anchors = ["a cat and a cigarette, noto style"], ["a cat and nothing, noto style"]
    ids = pipe.tokenizer_2(prompts[0])["input_ids"]
    own = own_tokens(material, prompts, anchors)[0]
    words = pipe.tokenizer_2.convert_ids_to_tokens([one for one, is_own in zip(ids, own, strict=False) if is_own])
    assert words == ["▁a", "▁cigarette"]
    (places,) = matched(material, prompts, anchors)
    theirs = pipe.tokenizer_2(anchors[0])["input_ids"]
    assert all(ids[i] == theirs[j] for i, j in places if i < len(ids))


def test_the_triplet_is_nothing_once_the_anchor_is_nearer_than_the_target():
    anchor, target = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert triplet(anchor + 0.4, anchor, target, 1.0) == 0
    assert torch.isclose(triplet(target, anchor, target, 1.0), torch.tensor(2.0))
    assert torch.isclose(triplet(anchor + 0.4, anchor, target, 0.0), torch.tensor(0.8))


def test_the_turned_contrast_falls_towards_others_and_away_from_the_synonym():
    synonym, other = torch.eye(2)[:1], torch.eye(2)[1:]
    like_synonym, like_other = (turned_contrast(each, synonym, other[None]) for each in (synonym, other))
    assert torch.isclose(like_synonym, torch.tensor(1 / TAU))
    assert torch.isclose(like_other, torch.tensor(-1 / TAU))


def test_salient_weights_are_those_with_the_largest_gradients_every_time():
    weight, turns = torch.zeros(4, requires_grad=True), iter([[4.0, 3, 0, 1], [4, 0, 3, 1]])
    (found,) = intersected([weight], lambda: (weight * torch.tensor(next(turns))).sum(), maps=2, share=0.5)
    assert found.tolist() == [True, False, False, False]


@pytest.mark.peers
def test_tuning_of_salient_weights_leaves_the_others(pipe, target):
    method = METHODS["ANT"]
    settings = {**method.grid[3], "steps": 1, "maps": 1, "share": 0.1}
    made = method.make(Material(pipe, batches=1, size=4), [target], settings)
    with made.drawing(pipe):
        now = [parameter.clone() for parameter in pipe.transformer.parameters()]
    moved = sum(int((a != b).sum()) for a, b in zip(now, pipe.transformer.parameters(), strict=True))
    assert moved == pytest.approx(made.num_bytes / 4, rel=0.01)


def test_fused_maps_take_each_concept_where_its_adapter_does_and_keep_the_rest():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 16, generator=rng, dtype=torch.float64)
    (f1, g1, f2, g2, kept), changes = (
        [torch.randn(2, 16, generator=rng, dtype=torch.float64) for _ in range(5)],
        [torch.randn(5, 16, generator=rng, dtype=torch.float64) for _ in range(2)],
    )
    parts = [Moments(g.T @ f, f.T @ f, f.T @ f, kept.T @ kept) for f, g in ((f1, g1), (f2, g2))]
    settings = {"preserve": 1.0, "ridge": 1e-9}
    first = refined(weight, parts, settings)
    assert torch.allclose(f1 @ first.T, g1 @ weight.T, atol=1e-5)
    assert torch.allclose(f2 @ first.T, g2 @ weight.T, atol=1e-5)
    last = fused(weight, parts, changes, settings)
    for f, change in zip((f1, f2), changes, strict=True):
        assert torch.allclose(f @ last.T, f @ (first + change).T, atol=1e-4)
    assert torch.allclose(kept @ last.T, kept @ weight.T, atol=1e-4)


def test_energy_is_large_where_an_input_goes_along_with_an_output():
    weight = torch.tensor([[2.0, -1.0]])
    given = torch.tensor([[[3.0, 0.0], [4.0, 1.0]]])
    out = torch.tensor([[[3.0], [4.0]]])
    found = energy(weight, given, out)
    assert torch.allclose(found, torch.tensor([[[2 * 5 * 1.0, 1 * 1 * 4 / 5]]]))
    assert torch.allclose(saliency(found, found.expand(2, -1, -1) / 2), found[0] / 2)


def test_chosen_weights_are_largest_in_row_and_layer_and_shared_ones_stay():
    strength = torch.tensor([[9.0, 8, 0, 0], [1, 2, 0, 0]])
    found = choose([strength, strength], temporal=0.5, spatial=0.25)
    assert found.tolist() == [[True, False, False, False], [False] * 4]
    other = torch.tensor([[True, True, False, False], [False] * 4])
    assert fuse([{"a": found}, {"a": other}], 0.6)["a"].tolist() == [[False, True, False, False], [False] * 4]
    assert torch.equal(fuse([{"a": found}], 0.6)["a"], found)


def test_a_token_of_the_concept_is_projected_out_and_others_stay(pipe):
    concept = torch.eye(6)[0]
    tokens = 0.3 * torch.eye(6)[None, 1:5].clone()
    tokens[0, 2] = 3 * concept
    span = onto(concept[None])
    assert belongs(tokens, torch.eye(6) - span, alpha=0.01)[0].tolist() == [False, False, True, False]
    projected = Projected(pipe.transformer, Material(pipe).sampler.sigmas, span, span, {"alpha": 0.01, "gamma": 4.0})
    safe, pooled, steps = projected.changed(tokens, torch.ones(1, 6))
    assert torch.allclose(safe[0, 2], torch.zeros(6), atol=1e-6)
    assert torch.equal(safe[0, [0, 1, 3]], tokens[0, [0, 1, 3]])
    assert pooled[0].tolist() == [0, 1, 1, 1, 1, 1]
    assert steps == 3  # four times the sigmoid of 1 - cos, and most of the prompt was the concept


def test_a_detector_stops_what_it_saw_in_training_and_draws_the_rest(pipe):
    class Corner(torch.nn.Module):
        def forward(self, pixels):
            return 100 * pixels[:, :1, 0, 0]

    images = pixels(draw(pipe, PROMPTS, 0))
    red = images[:, 0, 0, 0] > 127.5
    found = pixels(draw(Watched(pipe, [Corner()], 0.5), PROMPTS, 0))
    assert [bool((image == np.array([128, 128, 128])).all()) for image in found] == red.tolist()
    assert np.array_equal(found[~red], images[~red])


class ShortNewWord(NewWord):
    def budgets(self, level):
        return (1,)


@pytest.fixture(scope="module")
def report(pipe, tmp_path_factory):
    """A small run of a method, attacks included, and what it said."""
    folder, said = tmp_path_factory.mktemp("peers"), []
    judge, sizes = Judge(), Sizes(found=2, details=2, neighbours=0, kept=4, others=0)
    benches = [Bench(pipe, judge, sizes=sizes, seed=seed) for seed in (1, 0)]
    attacks = Attacks(pipe, judge, ["tobacco"], Size("quick", things=1, pictures=2))
    short = {"one new word": [ShortNewWord()], "fine-tune": [OneStep()]}
    attacks.rows = {row: attacks.rows[row][:1] for row in ("prompts", "img2img")} | short
    for _ in range(2):
        peers = Peers(pipe, *benches, Report(folder / "peers.json"), say=said.append)
        for method in (BASE, "word list"):
            settings = peers.choose(method, ["tobacco"]) if method != BASE else {}
            if method != BASE:
                peers.measure(method, ["tobacco"], settings)
            peers.attack(method, ["tobacco"], settings, attacks)
            write_pictures(peers, method, ["tobacco"], settings, folder)
    write_table(peers.report.found, folder / "peers.md")
    write_page(peers.report.found, folder)
    return folder, peers.report.found, said


@pytest.mark.peers
def test_a_list_of_words_stops_prompts_but_neither_a_new_word_nor_other_weights(report):
    _, found, _ = report
    ours, base = attacked(found, "word list"), attacked(found, BASE)
    assert ours["prompts"].value == 0 < base["prompts"].value
    assert ours["img2img"].value == 0 < base["img2img"].value
    assert ours["one new word"] == base["one new word"]
    assert ours["fine-tune"] == base["prompts"]
    assert not any("one-step" in key for key in found["attacked"]["word list"])


@pytest.mark.peers
def test_a_run_that_is_started_again_does_nothing_twice(report):
    _, _, said = report
    assert len([line for line in said if "paraphrase" in line]) == 2
    assert len([line for line in said if line.startswith("word list, tobacco")]) == 1


@pytest.mark.peers
def test_the_page_has_all_columns_and_what_each_method_is(report):
    folder, found, _ = report
    page, (row,) = (folder / "peers.html").read_text(), measured(found)
    for text in (*ROWS, "base model", str(row.harmonic), METHODS["word list"].carried, "data:image/png"):
        assert text in page
    assert str(row.found) in (folder / "peers.md").read_text()
    with Image.open(folder / "peers.png") as sheet:
        assert sheet.height == 2 * 64


def test_files_that_are_only_read_name_the_command_that_made_them_in_the_place_of_a_time():
    rate = Rate(1, 4)
    times = [made_in(Summary(name, 1, rate, None, rate, 1.0, 8.0, 2.4)) for name in ("masks", "UCE")]
    assert times == ["before, by benchmarks.make_catalogue", "2 s"]


def test_a_figure_is_first_if_its_interval_reaches_the_best():
    best, near, far = Rate(2, 100), Rate(4, 100), Rate(60, 100)
    assert [is_first(one, [best, near, far], is_high_good=False) for one in (best, near, far)] == [True, True, False]
    assert [is_first(one, [best, near, far], is_high_good=True) for one in (best, near, far)] == [False, False, True]


def test_of_many_attacks_and_budgets_the_worst_counts_over_all_things():
    def unit(attack, thing, *hits):
        points = [{"budget": k, "hits": hit, "n": 4} for k, hit in enumerate(hits)]
        return f"{attack}/{thing}", {"row": "prompts", "attack": attack, "points": points}

    units = dict([unit("case", "a", 4, 0), unit("case", "b", 0, 1), unit("order", "a", 3, 0), unit("order", "b", 2, 0)])
    assert attacked({"attacked": {"UCE": units}}, "UCE") == {"prompts": Rate(5, 8)}


@pytest.mark.peers
def test_weights_of_hidden_neurons_are_chosen_in_single_blocks_not_those_of_attention(pipe, target):
    method = METHODS["FIA"]
    made = method.make(Material(pipe, size=4), [target], {**method.grid[-1], "pictures": 4})
    width = pipe.transformer.inner_dim
    found = [made.masks[f"single_transformer_blocks.{k}.proj_out:image"] for k in range(2)]
    assert all(keep[:, :width].all() and not keep[:, width:].all() for keep in found)
    assert made.num_bytes == 4 * made.masks.count.masked
