"""Loading policies: errors that point, and inheritance that only tightens."""

import re
from pathlib import Path

import pytest

from safeflux.errors import PolicyError
from safeflux.policy.diff import Effect, compare
from safeflux.policy.load import Action, Adapters, Category, Policy, PolicyFileError, bundled_policies, load_policy

HEAD = "apiVersion: safeflux/v1\nkind: Policy\nname: {name}\n"
WEAPONS = "categories:\n  weapons: {action: enforce, masks: [weapons]}\n"


@pytest.fixture
def write(tmp_path):
    """Write a policy file of that name, with the head added, and return its path."""

    def _write(body: str, name: str = "mine", head: str = HEAD) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head.format(name=path.stem) + body, encoding="utf-8")
        return path

    return _write


def messages(path) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    return [f"{issue.line}:{issue.column}: {issue.message}" for issue in caught.value.issues]


@pytest.mark.parametrize("name", bundled_policies())
def test_every_bundled_policy_loads_under_its_own_name(name):
    assert load_policy(name).name == name


def test_strict_enforces_its_categories_and_lets_no_adapter_in():
    policy = load_policy("strict")
    assert {"weapons", "alcohol"} <= set(policy.enforced)
    assert policy.adapters is Adapters.DENY


def test_defaults_are_the_tight_ones(write):
    policy = load_policy(write("categories: {weapons: {masks: [weapons]}}\n"))
    assert policy.categories["weapons"].action is Action.ENFORCE
    assert policy.adapters is Adapters.DENY
    assert policy.budget.max_share_masked == 1.0
    assert policy.origins.keys() == {"categories.weapons.masks"}


def test_only_enforced_categories_are_applied(write):
    policy = load_policy(
        write(WEAPONS + "  horror: {action: warn, masks: [ghosts]}\n  drugs: {action: audit, masks: [d]}\n")
    )
    assert policy.enforced == {"weapons": ("weapons",)}


def test_a_policy_object_is_taken_as_it_is():
    policy = Policy(name="made", categories={"weapons": Category(masks=("weapons",))})
    assert load_policy(policy) is policy


def test_all_errors_of_a_file_are_told_at_once_with_the_nearest_word(write):
    body = (
        "adpaters: deny\nbudget: {max_share_masked: 2}\n"
        "categories:\n  weapons: {actoin: warn, masks: w}\n  Zoo: {action: enfroce}\n"
    )
    assert messages(write(body)) == [
        "4:1: unknown key 'adpaters'; did you mean 'adapters'?",
        "5:28: budget.max_share_masked: expected a share from 0 to 1, got 2; for 2 % write 0.02",
        "7:13: unknown key 'actoin'; did you mean 'action'?",
        "7:34: categories.weapons.masks: expected a list such as [w], got 'w'",
        "8:3: 'Zoo' is not a name: a name is 1 to 64 lower-case letters, digits, '-' and '_', "
        "and starts with a letter or digit",
        "8:17: categories.Zoo.action: 'enfroce' is not known; did you mean 'enforce'?",
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "1:1: the policy has no categories"),
        ("categories: {}\n", "4:13: the policy has no categories"),
        ("categories: {weapons: {action: warn}}\n", "4:23: the category weapons names no masks"),
        ("categories: {weapons: {masks: []}}\n", "4:31: categories.weapons.masks: the list is empty"),
        ("categories: {weapons: {masks: [a, b, a]}}\n", "4:31: categories.weapons.masks: named twice: a"),
        ("categories: {weapons: {masks: [../../etc/passwd]}}\n", "4:32: '../../etc/passwd' is not a name"),
        ("categories: {weapons: {masks: [1]}}\n", "4:32: categories.weapons.masks.0: expected text, got 1"),
        (
            "categories: {weapons: [weapons]}\n",
            "4:23: categories.weapons: expected keys (action, masks, erases), got a list",
        ),
        ("categories: [weapons]\n", "4:13: categories: expected keys (weapons: {masks: [weapons]}), got a list"),
        ("categories: drugs\n", "4:13: categories: expected keys (drugs: {masks: [drugs]}), got 'drugs'"),
        ("categories:\n", "4:12: categories: expected keys (name: value), got nothing"),
        ("adapters:\n" + WEAPONS, "4:10: adapters: nothing is not known; known: allow, allowlist, deny"),
        ("adapters: true\n" + WEAPONS, "4:11: adapters: true is not known"),
        ("adapters: allowlist\n" + WEAPONS, "4:11: adapters: allowlist needs the key adapter_allowlist"),
        ("adapter_allowlist: [abc]\n" + WEAPONS, "4:21: adapter_allowlist.0: 'abc' is not a sha256"),
        (
            f"adapter_allowlist: [{'a' * 64}]\n" + WEAPONS,
            "4:1: adapter_allowlist has no meaning where adapters is deny",
        ),
        ("adapter_max_scale: 2\n" + WEAPONS, "4:1: adapter_max_scale has no meaning where adapters is deny"),
        (
            "adapters: allow\nadapter_max_scale: 0\n" + WEAPONS,
            "5:20: adapter_max_scale: expected a number greater than 0",
        ),
        (
            "adapters: allow\nadapter_max_scale: .nan\n" + WEAPONS,
            "5:20: adapter_max_scale: expected a number greater than 0",
        ),
        (
            "budget: {max_share_masked: .nan}\n" + WEAPONS,
            "4:28: budget.max_share_masked: expected a finite number, got nan",
        ),
        (
            "budget: {max_share_masked: true}\n" + WEAPONS,
            "4:28: budget.max_share_masked: expected a valid number",
        ),
        (
            "budget:\n  max_share_masked: 0,05\n" + WEAPONS,
            "5:21: budget.max_share_masked: '0,05' is text; write the number 0.05, with a decimal point",
        ),
        ("budget: {max_share_masked: 0x1}\n" + WEAPONS, "4:28: budget.max_share_masked: expected a valid number"),
        (
            "\u0441ategories: {}\n",
            "4:1: unknown key '\u0441ategories'; did you mean 'categories'?; '\u0441' is U+0441 CYRILLIC",
        ),
        (
            "categories: {w\u0435apons: {}}\n",
            "4:14: 'w\u0435apons' is not a name: a name is 1 to 64 lower-case letters, digits, '-' and '_', "
            "and starts with a letter or digit; '\u0435' is U+0435 CYRILLIC SMALL LETTER IE",
        ),
        (
            "categories: {a: {action: w\u0430rn}}\n",
            "4:26: categories.a.action: 'w\u0430rn' is not known; did you mean 'warn'?; '\u0430' is U+0430 CYRILLIC",
        ),
        (
            "adapters: \u201cdeny\u201d\n" + WEAPONS,
            "4:11: adapters: '\u201cdeny\u201d' is not known; did you mean 'deny'?; '\u201c' is U+201C",
        ),
        ("categories: {a: {masks: {b: true}}}\n", "4:25: categories.a.masks: expected a list such as [one, other]"),
        ("categories: {a: {<<: {masks: [b]}}}\n", "4:18: a merge key ('<<'); write the keys out"),
        ("adapters:deny\n", "4:1: this is no `key: value`; a key ends in a colon, and a colon needs a space after it"),
        ("adapters = deny\n", "4:1: this is no `key: value`; write a colon and a space, not '='"),
        ("adapters\uff1a deny\n", "4:1: this is no `key: value`; its colon is U+FF1A FULLWIDTH COLON"),
        ("// a word\n", "4:1: a comment begins with '#'"),
        ("categories:\n  a:\n    masks:\n    -b\n", "7:5: a list item needs a space after its '-'"),
        (
            'budget: {max_share_masked: "0.05"}\n' + WEAPONS,
            "4:28: budget.max_share_masked: '0.05' is text; write the number 0.05, without quotes",
        ),
        (
            "budget: {max_share_masked: 4%}\n" + WEAPONS,
            "4:28: budget.max_share_masked: '4%' is text; write the number 0.04, without quotes or sign",
        ),
        (
            "budget: {max_share_masked: 4}\n" + WEAPONS,
            "4:28: budget.max_share_masked: expected a share from 0 to 1, got 4; for 4 % write 0.04",
        ),
        ("budget: {max_share_masked: 400}\n" + WEAPONS, "4:28: budget.max_share_masked: expected a number less than"),
        ("budget: {max_share_masked: much}\n" + WEAPONS, "4:28: budget.max_share_masked: expected a valid"),
        ("budget: 0.2\n" + WEAPONS, "4:9: budget: expected keys (max_share_masked), got 0.2"),
        ("name: twice\n" + WEAPONS, "4:1: duplicate key 'name'; the first one is on line 3"),
        ("extends: strict extra\n" + WEAPONS, "4:10: extends: 'strict extra' is not a policy's name or path"),
        ("extends:\n" + WEAPONS, "4:9: extends: expected text, got nothing"),
    ],
)
def test_one_bad_thing_gives_one_error(write, body, expected):
    (found,) = messages(write(body))
    assert found.startswith(expected)


@pytest.mark.parametrize(("head", "expected"), [
    (
        "apiVersion: safeflux/v2\nkind: Policy\nname: a\n",
        "1:13: apiVersion: 'safeflux/v2' is not known; did you mean 'safeflux/v1'?",
    ),
    ("apiVersion: safeflux/v1\nkind: policy\nname: a\n", "2:7: kind: 'policy' is not known; did you mean 'Policy'?"),
    ("kind: Policy\nname: a\n", "1:1: the key 'apiVersion' is missing; add `apiVersion: safeflux/v1`"),
])  # fmt: skip
def test_the_head_is_needed(write, head, expected):
    assert messages(write(WEAPONS, head=head)) == [expected]


@pytest.mark.parametrize("text", ["", "# nothing\n", "just words\n", "- a\n- b\n", "---\n", "3\n"])
def test_a_file_that_is_no_mapping(write, text):
    (found,) = messages(write(text, head=""))
    assert "the file: expected keys (" in found


def test_the_error_is_a_policy_error_and_shows_the_line(write):
    path = write("adpaters: deny\n" + WEAPONS)
    shown = re.escape(
        f"{path}:4:1: unknown key 'adpaters'; did you mean 'adapters'?\n  4 | adpaters: deny\n    | ^^^^^^^^"
    )
    with pytest.raises(PolicyError, match=shown):
        load_policy(str(path))


@pytest.mark.parametrize(("name", "expected"), [
    ("strct", "strct: no bundled policy has this name; did you mean 'strict'?"),
    ("", "no bundled policy has this name; known: "),
    ("nowhere.yaml", "nowhere.yaml: does not exist"),
    ("../strict", "../strict: does not exist"),
    ("a\0b.yaml", "does not exist|cannot be read"),
])  # fmt: skip
def test_a_policy_that_is_not_there(name, expected):
    with pytest.raises(PolicyFileError, match=expected):
        load_policy(name)


def test_a_child_inherits_and_tightens_and_every_value_knows_its_file(write):
    base = write("budget: {max_share_masked: 0.5}\n" + WEAPONS + "  horror: {action: warn, masks: [ghosts]}\n", "base")
    child = write(
        "extends: base.yaml\nbudget: {max_share_masked: 0.2}\ncategories:\n"
        "  horror: {action: enforce}\n  weapons: {masks: [weapons, knives]}\n  alcohol: {masks: [alcohol]}\n",
    )
    policy = load_policy(child)
    assert policy.enforced == {"weapons": ("weapons", "knives"), "horror": ("ghosts",), "alcohol": ("alcohol",)}
    assert policy.budget.max_share_masked == 0.2
    assert str(policy.origins["categories.horror.action"]) == f"{child}:7"
    assert str(policy.origins["categories.horror.masks"]) == f"{base}:7"
    assert str(policy.origins["categories.weapons.action"]) == f"{base}:6"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("categories:\n  weapons: {action: warn}\n", "6:21: loosens categories.weapons.action: the parent has enforce"),
        (
            "categories:\n  weapons: {masks: [other]}\n",
            "6:20: loosens categories.weapons.masks: the parent has weapons",
        ),
        ("budget: {max_share_masked: 0.6}\n", "5:28: loosens budget.max_share_masked: the parent has 0.5"),
        ("adapters: allow\n", "5:11: loosens adapters: the parent has allowlist"),
        (f"adapter_allowlist: [{'b' * 64}]\n", "5:20: loosens adapter_allowlist: the parent has aaaa"),
    ],
)
def test_a_child_never_loosens(write, body, expected):
    allow = f"adapters: allowlist\nadapter_allowlist: [{'a' * 64}]\n"
    write("budget: {max_share_masked: 0.5}\n" + allow + WEAPONS, "base")
    (found,) = messages(write("extends: base.yaml\n" + body))
    assert found.startswith(expected)
    assert "base.yaml:" in found


def test_the_scale_of_adapters_tightens(write):
    write("adapters: allow\nadapter_max_scale: 2.0\n" + WEAPONS, "base")
    assert load_policy(write("extends: base.yaml\nadapter_max_scale: 1.5\n")).adapter_max_scale == 1.5
    assert load_policy(write("extends: base.yaml\n")).values()["adapter_max_scale"] == 2.0
    assert not load_policy(write("extends: base.yaml\nadapters: deny\n")).bounds_scale
    plain, bound = (load_policy(write("adapters: allow\n" + line + WEAPONS)) for line in ("", "adapter_max_scale: 2\n"))
    (change,) = compare(plain, bound)
    assert (change.old, change.new, change.effect) == (None, 2.0, Effect.TIGHTENS)
    assert [c.effect for c in compare(bound, plain)] == [Effect.RELAXES]
    assert plain.digest != bound.digest
    (found,) = messages(write("extends: base.yaml\nadapter_max_scale: 3.0\n"))
    assert found.startswith("5:20: loosens adapter_max_scale: the parent has 2.0")


def test_a_child_adds_stores_and_keeps_those_of_its_parent(write):
    one, two = (f"hf://org/masks@{digit * 40}" for digit in "12")
    write(f"stores: ['{one}']\n" + WEAPONS, "base")
    assert load_policy(write("extends: base.yaml\n")).stores == (one,)
    child = load_policy(write(f"extends: base.yaml\nstores: ['{two}', '{one}']\n"))
    assert child.values()["stores"] == [one, two]
    assert two in repr(child)
    plain, named = load_policy(write(WEAPONS)), load_policy(write(f"stores: ['{one}']\n" + WEAPONS))
    assert "stores" not in plain.values()
    assert plain.digest != named.digest
    assert [(c.new, c.effect) for c in compare(plain, named)] == [(one, Effect.TIGHTENS)]
    moved = load_policy(write(f"stores: ['{two}']\n" + WEAPONS))
    assert {(c.old, c.new): c.effect for c in compare(named, moved)} == {
        (one, None): Effect.RELAXES,
        (None, two): Effect.TIGHTENS,
    }


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://org/masks@main", "got 'main', which can move"),
        ("hf://org/masks", "with the 40 digits of a commit, got none"),
        ("masks", "'masks' is no address hf://ORG/NAME@COMMIT; a folder is given where the policy is used"),
        ("HF://org/masks", "is no address"),
    ],
)
def test_a_store_that_can_move_is_refused(write, address, expected):
    (found,) = messages(write(f"stores: ['{address}']\n" + WEAPONS))
    assert found.startswith("4:10: stores.0: ")
    assert expected in found


def test_adapters_tighten_from_a_list_to_none(write):
    write(f"adapters: allowlist\nadapter_allowlist: [{'a' * 64}, {'b' * 64}]\n" + WEAPONS, "base")
    assert load_policy(write(f"extends: base.yaml\nadapter_allowlist: [{'b' * 64}]\n")).adapter_allowlist == ("b" * 64,)
    denied = load_policy(write("extends: base.yaml\nadapters: deny\n"))
    assert (denied.adapters, denied.adapter_allowlist) == (Adapters.DENY, ())


def test_a_bundled_policy_as_parent_with_and_without_a_pin(write):
    strict = load_policy("strict")
    assert load_policy(write("extends: strict\n")).digest == strict.digest
    assert load_policy(write(f"extends: strict@sha256:{strict.digest}\n")).enforced == strict.enforced
    (found,) = messages(write(f"extends: strict@sha256:{'0' * 64}\n"))
    assert "the parent is not the pinned one" in found


@pytest.mark.parametrize(("reference", "expected"), [
    ("strct", "no bundled policy is named 'strct'; did you mean 'strict'?"),
    ("../outside.yaml", "is outside this file's folder"),
    ("/etc/passwd", "is outside this file's folder"),
    ("link.yaml", "is outside this file's folder"),
    ("missing.yaml", "does not exist"),
    ("mine.yaml", "extends in a circle"),
])  # fmt: skip
def test_a_parent_that_cannot_be_had(write, tmp_path, reference, expected):
    write(WEAPONS, "outside")
    child = write(f"extends: {reference}\n" + WEAPONS, "inner/mine")
    (tmp_path / "inner/link.yaml").symlink_to(tmp_path / "outside.yaml")
    (found,) = messages(child)
    assert found.startswith("4:10: ")
    assert expected in found


def test_circles_and_long_chains_end(write):
    for index in range(12):
        write(f"extends: p{index + 1}.yaml\n" + WEAPONS, f"p{index}")
    (found,) = messages(write("extends: p0.yaml\n"))
    assert "at most 8 parents" in found
    write("extends: b.yaml\n", "a")
    (found,) = messages(write("extends: a.yaml\n", "b"))
    assert re.search(r"in a circle: .*b\.yaml -> .*a\.yaml -> .*b\.yaml", found)


def test_errors_of_a_parent_are_told_under_its_own_name(write):
    base = write("oops: 1\n" + WEAPONS, "base")
    with pytest.raises(PolicyFileError) as caught:
        load_policy(write("extends: base.yaml\n"))
    assert [(issue.file, issue.line) for issue in caught.value.issues] == [(str(base), 4)]
