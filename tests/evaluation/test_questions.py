"""What an evaluation asks: held out, the same whatever else is asked, and on noises of its own."""

from itertools import chain, pairwise

import pytest

from safeflux.errors import ConfigError
from safeflux.evaluation.questions import KEPT, MAX_PICTURES, MAX_SEED, Sizes, questions_of, target_of
from safeflux.packs.emoji import NEIGHBOURS
from safeflux.reference.vocabulary import is_held_out, vocabulary

WORDS = vocabulary()
SMALL = Sizes(found=20, details=20, neighbours=8, kept=40, others=6)


def ask(*names, sizes=SMALL, seed=0):
    return questions_of([target_of(name) for name in names], sizes, seed)


def test_a_question_is_the_same_whatever_else_is_asked_and_begins_a_longer_one():
    alone, together = ask("weapons"), ask("weapons", "alcohol", "fluent-style")
    shared = {"weapons/by name", "weapons/held out", "weapons/beside", "weapons/neighbours", *KEPT[:2]}
    assert all(alone[name] == together[name] for name in shared)
    longer = ask("weapons", sizes=Sizes(found=50, details=50, neighbours=30, kept=80, others=9))
    for name, question in alone.items():
        assert longer[name].asks[: len(question.asks)] == question.asks
        assert longer[name].first_seed == question.first_seed
    others = [name for name in alone if name not in shared]
    assert others == [f"{t.name}/by name" for t in WORDS.targets.values() if t.concepts and t.name != "weapons"]
    assert all(len(alone[name].asks) == SMALL.others for name in others)


def test_no_two_questions_share_a_noise_and_none_lies_in_anothers_range():
    every = [
        question
        for seed in (0, 1, MAX_SEED)
        for question in chain(*(ask(name, seed=seed).values() for name in WORDS.targets))
    ]
    ranges = sorted({(q.first_seed, q.first_seed + MAX_PICTURES) for q in every})
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert ranges[0][0] > 10**13  # the demo's largest seed is about 10^12, the recipe's and validation's about 10^8
    assert ranges[-1][1] < 2**63


def test_prompts_are_held_out_from_training():
    for target in WORDS.targets.values():
        questions = ask(target.name)
        known = [concept for concept in WORDS.concepts if not is_held_out(concept)]
        trained = {word for concept in known for word in (concept.words, *concept.synonyms)}
        if words := questions.get(f"{target.name}/held out"):
            things = {a.prompt.partition(",")[0].partition(" ")[2] for a in words.asks}
            assert things
            assert not things & trained
        if pairs := questions.get(f"{target.name}/beside"):
            assert all(is_held_out(WORDS[a.other]) for a in pairs.asks)
        for name, side in zip(KEPT, (True, False), strict=False):
            assert all(WORDS[a.concept].category is None for a in questions[name].asks)
            assert all(is_held_out(WORDS[a.concept]) == side for a in questions[name].asks)


def test_every_concept_comes_in_turn():
    counts = [0] * len(target_of("weapons").concepts)
    for a in ask("weapons")["weapons/by name"].asks:
        counts[[c.name for c in target_of("weapons").concepts].index(a.concept)] += 1
    assert counts == [4] * 5


def test_a_style_is_asked_for_on_neutral_things_that_mask_training_knows_and_on_others():
    questions = ask("fluent-style")
    assert {name for name in questions if name.startswith("fluent")} == {
        "fluent-style/by name",
        "fluent-style/held out",
    }
    for name, side in (("by name", False), ("held out", True)):
        asks = questions[f"fluent-style/{name}"].asks
        assert {a.style for a in asks} == {"fluent"}
        assert all(WORDS[a.concept].category is None and is_held_out(WORDS[a.concept]) == side for a in asks)


def test_neighbours_are_neutral_and_known_for_every_target_of_things():
    assert set(NEIGHBOURS) == {t.name for t in WORDS.targets.values() if t.concepts}
    for names in NEIGHBOURS.values():
        assert all(WORDS[name].category is None and why for name, why in names.items())


@pytest.mark.parametrize("sizes", [{"found": 1}, {"kept": 0}, {"others": MAX_PICTURES + 1}])
def test_a_size_that_measures_nothing_is_refused(sizes):
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        Sizes(**sizes)


def test_what_is_asked_no_picture_of_is_left_out():
    questions = ask("weapons", sizes=Sizes(found=4, details=0, neighbours=0, kept=8, others=0))
    assert {name: len(question.asks) for name, question in questions.items()} == {
        "weapons/by name": 4,
        KEPT[0]: 4,
        KEPT[1]: 4,
    }


def test_an_unknown_category_or_seed_is_refused():
    with pytest.raises(ConfigError, match=r"'nudity'.*weapons, alcohol"):
        target_of("nudity")
    for seed in (-1, MAX_SEED + 1):
        with pytest.raises(ConfigError, match="seed"):
            ask("weapons", seed=seed)


def test_concepts_choose_the_target_and_those_of_a_known_category_give_its_own():
    weapons = WORDS.targets["weapons"]
    assert target_of("weapons") is target_of("weapons", [c.name for c in weapons.concepts]) is weapons
    assert target_of("weapons", ["weapons"]) is weapons  # a mask that names nothing but its category
    assert target_of("fluent-style", ["fluent"]) is WORDS.targets["fluent-style"]
    vehicles = target_of("vehicles", ["automobile", "bus"])
    assert (vehicles.name, vehicles.kind, [c.name for c in vehicles.concepts]) == (
        "vehicles",
        "object",
        ["automobile", "bus"],
    )
    noto = target_of("noto-style", ["noto"])
    assert (noto.kind, noto.style, noto.concepts) == ("style", "noto", ())
    part = target_of("weapons", ["dagger"])
    assert [c.name for c in part.concepts] == ["dagger"]


@pytest.mark.parametrize(
    ("concepts", "got"),
    [(["rhino"], "'rhino'"), (["auto-mobile", "bus"], "mean 'automobile'"), (["noto", "bus"], "'noto'")],
)
def test_concepts_that_the_judge_does_not_know_are_named(concepts, got):
    with pytest.raises(ConfigError, match=rf"category 'vehicles': expected concepts that the judge.*{got}"):
        target_of("vehicles", concepts)


def test_a_new_category_is_asked_for_beside_things_that_it_does_not_erase():
    concepts = [c.name for c in WORDS.neutral if is_held_out(c)][:3]
    asked = questions_of([target_of("vehicles", concepts)], Sizes(2, 60, 2, 2, 0), 0)["vehicles/beside"].asks
    assert {a.concept for a in asked} == set(concepts)
    assert not {a.other for a in asked} & set(concepts)
