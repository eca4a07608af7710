"""What the demo draws, judges and counts."""

import json

import numpy as np
import pytest

from safeflux.demo.grid import draw_grid
from safeflux.demo.result import Measure
from safeflux.demo.run import run_demo
from safeflux.errors import ModelError, PolicyError, StoreError
from safeflux.evaluation.fidelity import contrasts_kept
from safeflux.families import MATRIX_KINDS
from safeflux.families.sites import find_sites
from safeflux.model.guard import guard
from safeflux.pages.pictures import png
from safeflux.reference.judge import Judge
from safeflux.reference.measure import draw, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import held_out_concepts, is_held_out, vocabulary


def test_json_has_the_figures_and_nothing_else(result, shop, images, seed):
    figures = json.loads(json.dumps(result.to_json()))
    assert set(figures) == {
        *("policy", "seeds", "categories", "kept", "second_opinions", "share_masked", "guard_ms", "step_ms")
    }
    assert list(figures["second_opinions"]) == [section.name for section in result.sections]
    for section in result.sections:
        opinions = figures["second_opinions"][section.name]
        assert list(opinions) == ["zero-shot:emoji-clip"]
        assert (
            opinions["zero-shot:emoji-clip"]["base_rate"] > 0.5
        )  # it sees what the plain model draws, as the judge does
    assert figures["policy"] == "shop"
    assert figures["seeds"] == {"prompts": seed, "noise": [4_000_000, 4_000_000 + 5 * images - 1]}
    assert list(figures["categories"]) == ["blades", "spirits", "looks"]
    for name, section in zip(figures["categories"], result.categories, strict=True):
        measure = "style" if name == "looks" else "found"
        before, after = (sum(getattr(getattr(p, side), measure) for p in section.pairs) for side in ("before", "after"))
        assert figures["categories"][name] == {
            "base_rate": before / images,
            "guarded_rate": after / images,
            "n": images,
        }
    right = [sum(getattr(pair, side).right for pair in result.kept.pairs) / images for side in ("before", "after")]
    fidelity = figures["kept"].pop("fidelity")
    assert figures["kept"] == {"base_accuracy": right[0], "guarded_accuracy": right[1], "n": images}
    kept = contrasts_kept(*([getattr(p, side).image for p in result.kept.pairs] for side in ("before", "after")))
    assert fidelity["contrast"]["mean"] == pytest.approx(kept[~np.isnan(kept)].mean())
    assert set(figures["step_ms"]) == {"plain", "guarded"}
    assert all(ms > 0 for ms in (figures["guard_ms"], *figures["step_ms"].values()))


def test_shares_count_every_bit_the_model_has(result, shop):
    _, _, (blades, spirits, looks) = shop
    sites = find_sites(load_pipeline().transformer).values()
    weights = sum(site.num_bits for site in sites if site.kind in MATRIX_KINDS)
    neurons = sum(site.num_bits for site in sites if site.kind not in MATRIX_KINDS)
    assert result.weights == (blades.count.masked, weights)
    assert result.neurons == (spirits.count.masked + looks.count.masked, neurons)
    masked = sum(masks.count.masked for masks in (blades, spirits, looks))
    assert result.to_json()["share_masked"] == pytest.approx(masked / (weights + neurons))


def test_sections_ask_for_what_they_say(result):
    words = vocabulary()
    weapons, alcohol = ({c.name for c in words.categories[name]} for name in ("weapons", "alcohol"))
    blades, spirits, neutral = ({pair.ask.concept for pair in section.pairs} for section in result.categories)
    assert blades == weapons
    assert spirits == alcohol
    assert all(is_held_out(words[name]) for name in neutral)
    assert {pair.ask.style for pair in result.categories[2].pairs} == {"fluent"}
    assert all(is_held_out(words[pair.ask.concept]) for pair in result.kept.pairs)
    for k, pair in enumerate(result.beside.pairs):
        assert pair.ask.concept in (alcohol if k % 2 else weapons)
        assert is_held_out(words[pair.ask.other])
    assert [section.measure for section in result.sections] == [
        *[Measure.FOUND] * 2,
        Measure.STYLE,
        Measure.RIGHT,
        Measure.OTHER,
    ]


def test_held_out_concepts_are_neutral_and_a_third():
    neutral = vocabulary().neutral
    assert all(concept.category is None for concept in held_out_concepts())
    assert [concept for concept in neutral if is_held_out(concept)] == list(held_out_concepts())
    assert 3 * len(held_out_concepts()) - len(neutral) in range(3)


def pixels(images):
    return [image.tobytes() for image in images]


def test_the_same_noise_gives_the_same_pictures_before_guard_and_after_undo(shop):
    policy, store, _ = shop
    pipe = load_pipeline()
    asks = single_asks(vocabulary(), held_out_concepts()[:5], 1, np.random.default_rng(0))
    prompts = [ask.prompt for ask in asks]
    before = pixels(draw(pipe, prompts, 7, batch=2))
    handle = guard(pipe, policy, store=store)
    guarded = pixels(draw(pipe, prompts, 7, batch=2))
    handle.undo()
    assert pixels(draw(pipe, prompts, 7, batch=2)) == before
    assert all(old != new for old, new in zip(before, guarded, strict=True))
    assert len(set(before)) == len(before)


def test_the_pictures_of_a_result_are_paired_and_judged(result):
    pipe = load_pipeline()
    pairs = [pair for section in result.sections for pair in section.pairs]
    assert [pair.seed for pair in pairs] == list(range(4_000_000, 4_000_000 + len(pairs)))
    assert all(pair.before.image.tobytes() != pair.after.image.tobytes() for pair in pairs)
    again = draw(pipe, [pair.ask.prompt for pair in pairs], pairs[0].seed, batch=20)
    assert pixels(again) == pixels([pair.before.image for pair in pairs])
    verdicts = Judge()(again)
    assert [pair.before.found for pair in pairs] == list(verdicts.found([pair.ask.concept for pair in pairs]))
    assert [pair.before.right for pair in pairs] == [
        {pair.ask.concept} == top for pair, top in zip(pairs, verdicts.top(1), strict=True)
    ]
    beside = result.beside.pairs
    others = Judge()([pair.after.image for pair in beside]).found([pair.ask.other for pair in beside])
    assert [pair.after.other for pair in beside] == list(others)


def test_two_runs_give_the_same_figures_but_for_the_times(shop, seed):
    policy, store, _ = shop
    images, steps = 2, []
    first, again = (
        run_demo(policy, images=images, seed=seed, store=store, progress=progress)
        for progress in (lambda *step: None, lambda *step: steps.append(step))
    )
    timed = {"guard_ms", "step_ms"}
    assert {k: v for k, v in again.to_json().items() if k not in timed} == {
        k: v for k, v in first.to_json().items() if k not in timed
    }
    assert png(draw_grid(again)) == png(draw_grid(first))
    assert {(what, done) for what, done, total in steps if done == total} == {
        ("loading the model", 1),
        ("timing", 12),
        ("drawing before guard", 5 * images),
        ("drawing after guard", 5 * images),
    }


def test_a_policy_that_the_model_draws_nothing_of_is_refused(save_mask, tmp_path):
    save_mask(tmp_path, "nudity", "nudity", 1, {"weight"})
    head = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ndescription: Mine.\nbudget: {max_share_masked: 1}\n"
    (tmp_path / "mine.yaml").write_text(head + "categories:\n  nudity: {masks: [nudity]}\n")
    with pytest.raises(PolicyError, match=r"category 'nudity': its masks are for nudity, and the embedded model draws"):
        run_demo(tmp_path / "mine.yaml", images=1, store=tmp_path)
    (tmp_path / "mine.yaml").write_text(head + "categories:\n  nudity: {action: audit, masks: [nudity]}\n")
    with pytest.raises(PolicyError, match="enforces no category"):
        run_demo(tmp_path / "mine.yaml", images=1, store=tmp_path)


def test_a_missing_mask_or_model_is_refused_before_anything_is_drawn(shop, tmp_path):
    steps = []
    with pytest.raises(StoreError, match="blades"):
        run_demo(shop[0], images=1, progress=lambda *step: steps.append(step))
    assert steps == [("loading the model", 0, 1)]
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_pipeline(tmp_path)
