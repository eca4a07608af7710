"""Packs: the bundled ones, those of the embedded model, files of one's own, and mistakes in them."""

from importlib.resources import files

import pytest

from safeflux.errors import ConfigError
from safeflux.packs.load import STARTERS, bundled_packs, known_packs, load_pack, load_packs
from safeflux.packs.schema import pack_schema
from safeflux.packs.templates import BY_KIND, placeholders
from safeflux.reference.vocabulary import vocabulary

GOOD = """\
apiVersion: safeflux/v1
kind: Pack
name: vehicles
anchor: a park bench
concepts:
  car: {words: [a car, an automobile], held_out: [a sedan]}
  bicycle: {words: [a bicycle], anchor: a pair of glasses}
neighbours: [a shopping cart]
neutral: [a cat, a dog]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="vehicles.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", known_packs())
def test_every_pack_that_comes_with_safeflux_is_valid_and_named_as_its_category(name):
    pack = load_pack(name)
    assert pack.name == name.removeprefix("emoji:")
    assert all(pack.words.values())
    assert all({pack.slot} <= placeholders(text) for text in pack.prompts.single)
    if pack.target == "object" and ":" not in name:
        assert pack.neighbours
        assert pack.held_out.keys() == pack.concepts.keys()  # generality can be measured for each


def test_there_are_packs_for_real_models_starters_and_the_embedded_vocabulary():
    real = {"weapons", "alcohol", "tobacco", "drugs", "gambling", "horror"}
    assert set(bundled_packs()) == real | set(STARTERS)
    assert set(known_packs()) - set(bundled_packs()) == {f"emoji:{name}" for name in vocabulary().targets}
    text = "".join(entry.read_text() for entry in files("safeflux.packs").joinpath("bundled").iterdir())
    assert text.count("kind: Pack") == len(bundled_packs())


def test_the_embedded_packs_are_the_vocabulary():
    weapons, style = load_pack("emoji:weapons"), load_pack("emoji:fluent-style")
    assert weapons.words["bow-and-arrow"] == ("a bow and arrow", "an archery", "an archer")
    assert weapons.held_out["bow-and-arrow"] == ("an arrow",)
    assert (style.target, style.slot, style.anchor, style.words) == ("style", "style", "noto", {"fluent": ("fluent",)})


def test_a_pack_of_ones_own(write):
    pack = load_pack(write(GOOD))
    assert (pack.name, pack.anchor, pack.prompts) == ("vehicles", "a park bench", BY_KIND["object"])
    assert pack.held_out == {"car": ("a sedan",)}
    own = load_pack(write(GOOD + "templates: {photographs: ['a photo of {thing}'], drawings: ['a map of {thing}']}\n"))
    assert own.prompts.single == ("a photo of {thing}", "a map of {thing}")
    assert list(load_packs((write(GOOD), "weapons"))) == ["vehicles", "weapons"]


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("name: vehicles", "name: Vehicles", "3:7", "is not a name"),
        ("anchor: a park bench", "anchr: a park bench", "4:1", "unknown key 'anchr'; did you mean 'anchor'?"),
        ("held_out: [a sedan]", "heldout: [a sedan]", "6:40", "unknown key 'heldout'; did you mean 'held_out'?"),
        ("words: [a bicycle]", "words: []", "7:20", "concepts.bicycle.words"),
        ("words: [a bicycle]", "words: a bicycle", "7:20", "expected a list"),
        ("[a bicycle]", "[a car]", "7:21", "'a car' is a word for car already"),
        ("[a shopping cart]", "[a sedan]", "8:14", "'a sedan' is a word for car, which is erased"),
        ("[a cat, a dog]", "[a cat, a bicycle]", "9:18", "'a bicycle' is a word for bicycle"),
        ("kind: Pack", "kind: Policy", "2:7", "kind: expected a Pack, got a Policy"),
        ("[a cat, a dog]", "[a cat, a dog", "9:10", "never closed"),
        ("neutral:", "templates: {photographs: ['a photo']}\nneutral:", "9:12", "expected {thing} in it"),
        ("neutral:", "templates: {pairs: ['{first} and {second}']}\nneutral:", "9:20", "expected photographs or"),
        ("neutral:", "templates: {drawings: ['{thing}, {mood}']}\nneutral:", "9:12", "no slot fills {mood}"),
    ],
)
def test_each_mistake_is_reported_where_it_stands(write, old, new, place, message):
    assert GOOD.count(old) == 1
    path = write(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_pack(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{place}: ")
    assert message in text
    assert "^" in text  # an excerpt


def test_what_is_no_pack_is_said(write, tmp_path):
    for name, message in (
        ("weapon", "did you mean 'weapons'?"),
        ("emoji:weapon", "did you mean 'weapons'?"),
        (str(tmp_path / "none.yaml"), "does not exist"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_pack(name)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="a second pack for the category 'weapons'"):
        load_packs(("weapons", "emoji:weapons"))


def test_editors_get_a_schema():
    schema = pack_schema()
    assert schema["additionalProperties"] is False
    assert {"apiVersion", "kind", "name", "concepts"} == set(schema["required"])
    assert schema["definitions"]["PackConcept"]["required"] == ["words"]
