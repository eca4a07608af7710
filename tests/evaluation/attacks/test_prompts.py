"""The attacks by prompts: which prompts they draw, from which noises, and how they are found by name."""

import json
from itertools import pairwise, product

import numpy as np
import pytest

from safeflux.errors import ConfigError
from safeflux.evaluation.attacks.base import FIRST_SEED, Part, Size, templates_of
from safeflux.evaluation.attacks.kinds.rewording import Case, Long, Order, Paraphrase, Plain, Repeat, Split
from safeflux.evaluation.attacks.kinds.sampling import Guidance
from safeflux.evaluation.attacks.kinds.words import words_of
from safeflux.evaluation.attacks.registry import all_attacks, find_attacks
from safeflux.evaluation.attacks.things import Thing, erased_things, new_things, phrases_of
from safeflux.evaluation.attacks.victim import random_like
from safeflux.evaluation.questions import FIRST_SEED as FIRST_OF_QUESTIONS
from safeflux.evaluation.questions import MAX_SEED
from safeflux.evaluation.worded.words import packs_of
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet, diff
from safeflux.packs.load import load_packs
from safeflux.profiles.load import load_profile
from safeflux.reference.model import load_pipeline
from safeflux.reference.unseen import UNSEEN, unseen_pictures
from safeflux.reference.vocabulary import vocabulary

MUG = Thing("beer-mug", ("a beer mug", "a beer", "a stein"))
TEMPLATE = "{}, noto style, blue background"


@pytest.mark.parametrize(
    ("attack", "k", "budget", "prompt"),
    [
        (Plain(), 0, 1, "a beer mug, noto style, blue background"),
        (Paraphrase(), 1, 1, "a beer, noto style, blue background"),
        (Paraphrase(), 2, 1, "please draw a stein, noto style, blue background"),
        (Repeat(), 0, 2, "a beer mug a beer mug, noto style, blue background"),
        (Repeat(), 1, 3, "a beer mug and a beer mug and a beer mug, noto style, blue background"),
        (Case(), 0, 1, "A BEER MUG, noto style, blue background"),
        (Case(), 4, 1, "a b e e r m u g, noto style, blue background"),
        (Order(), 0, 1, "noto style, blue background, a beer mug"),
        (Order(), 1, 1, "blue background, a beer mug, noto style"),
        (Long(), 0, 2, "and so a beer mug, noto style, blue background"),
    ],
)
def test_prompts_are_reworded_by_rule(attack, k, budget, prompt):
    assert attack.reword(MUG, TEMPLATE, k, budget) == prompt


def test_a_template_of_one_part_has_its_words_turned():
    assert Order().reword(MUG, "a photo of {}", 0, 1) == "photo of a beer mug a"


def test_attacks_are_found_by_name_and_by_kind():
    every = all_attacks()
    assert [attack.name for attack in find_attacks()] == list(every)
    assert [attack.name for attack in find_attacks(["steps", "plain"])] == ["plain", "steps"]  # as in reports
    assert {attack.kind for attack in find_attacks(["prompts"])} == {"prompts"}
    with pytest.raises(ConfigError, match="did you mean 'paraphrase'"):
        find_attacks(["paraphrases"])
    assert sum(not attack.in_training for attack in every.values()) >= 3


@pytest.mark.parametrize("attack", all_attacks().values(), ids=lambda attack: attack.name)
def test_budgets_grow_and_costs_are_known(attack):
    for level in ("quick", "full"):
        budgets = attack.budgets(level)
        assert list(budgets) == sorted(set(budgets))
        assert attack.cost(Size.of(level)).pictures > 0


def test_noises_of_search_judging_training_and_questions_never_meet():
    last = FIRST_OF_QUESTIONS + ((MAX_SEED + 1) << 48)
    most = Size("full", 0, 2**16, MAX_SEED)
    ranges = [(0, last)]
    for part in (Part.FIT, Part.JUDGE):
        seeds = [Plain().seeds(thing, most, part) for thing in (MUG, Thing("cat", ("a cat",)))]
        ranges.append((min(map(min, seeds)), max(map(max, seeds)) + 1))
        assert not set(seeds[0]) & set(seeds[1])
    assert last < 2**62 == FIRST_SEED[Part.FIT]  # training draws 62-bit numbers
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert ranges[-1][1] < 2**63


def test_templates_for_searching_and_judging_share_none():
    for profile in (load_profile("emoji-flux"), load_profile("flux1-dev")):
        fit, judged = (set(templates_of(phrases_of(profile), part)) for part in Part)
        assert fit
        assert judged
        assert not fit & judged


def test_random_masks_have_as_many_bits_off_at_each_site():
    rng = np.random.default_rng(0)
    masks = MaskSet({"a:weight": rng.random((40, 30)) > 0.2, "b:ff": rng.random(50) > 0.5})
    other = random_like(masks, 7)
    assert other.counts == masks.counts
    assert diff(masks, other)
    assert random_like(masks, 7) == other != random_like(masks, 8)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def test_words_are_the_tokenizers_own(pipe):
    words = words_of(pipe)
    assert {"dagger", "cat", "style"} <= set(words)
    assert all(word.isalpha() for word in words)


def test_what_a_pipeline_cannot_do_is_left_out_with_a_reason(pipe):
    assert Split().refusal(pipe) is None
    assert Guidance().refusal(pipe) is None

    class OneEncoder:
        def __call__(self, prompt):
            return prompt

    assert "one text encoder" in Split().refusal(OneEncoder())
    assert "guidance" in Guidance().refusal(OneEncoder())


def test_new_things_are_real_icons_outside_of_the_vocabulary():
    assert not {concept.name for concept in UNSEEN} & set(vocabulary().names)
    for concept in UNSEEN[:2]:
        pictures = unseen_pictures(concept.name)
        assert len({image.tobytes() for _, image in pictures}) == 96
        assert {image.size for _, image in pictures} == {(64, 64)}
        looks = product(vocabulary().styles, vocabulary().background_names)
        assert all(any(f"{s} style, {b} " in text for text, _ in pictures[:48]) for s, b in looks)
    json.dumps([text for text, _ in pictures])


def test_the_site_names_of_random_masks_fit_the_model(pipe):
    site = next(site for site in find_sites(pipe.transformer).values() if site.kind == "weight")
    masks = random_like(MaskSet({site.name: np.arange(site.num_bits).reshape(site.shape) % 7 > 0}), 0)
    assert masks.shapes == {site.name: site.shape}


def test_things_go_by_packs_and_by_mask_files_on_any_model():
    klein, emoji = load_profile("flux2-klein-4b"), load_profile("emoji-flux")
    packs = load_packs(["weapons"])

    def things_of(concepts, profile=emoji, given=None):
        return {thing.name: thing.words for thing in erased_things(packs_of(concepts, profile, given))}

    things = things_of({"weapons": ("weapons",), "brand": ("Some cola",)}, klein)
    assert things.pop("some-cola") == ("a Some cola",)
    concepts = packs["weapons"].concepts
    assert things == {name: (*concept.words, *concept.held_out) for name, concept in concepts.items()}
    assert things_of({"weapons": ("weapons",)}, emoji, packs) == things
    assert new_things("some/folder") == []
    several = {"rare": ("rare",), "horror": ("skull",), "weapons": ("dagger",), "brand": ("cola",)}
    assert (
        list(things_of(several))
        == list(things_of(dict(reversed(several.items()))))
        == ["dagger", "skull", "cola", "rare"]
    )
    assert things_of({"fluent-style": ("fluent",)}) == {}
    assert list(things_of({"horror": ("skull", "spider")})) == ["skull", "spider"]
    assert len(things_of({"horror": ("horror",)})) == 5
    with pytest.raises(ConfigError, match="pack 'weapons': no mask erases this category; did you mean 'weapon'"):
        things_of({"weapon": ("dagger",)}, klein, packs)
