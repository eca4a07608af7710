"""Effective policies: the digest of what is in force, reading back what was written, and the schema for editors."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeflux.packs.schema import pack_schema
from safeflux.policy.load import Action, Budget, Category, Policy, PolicyFileError, load_policy, policy_schema
from safeflux.policy.schema import _ADDRESS_SCHEMA, PolicyFile
from safeflux.policy.validate import pattern_words
from safeflux.profiles.schema import profile_schema

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,6}", fullmatch=True)
lists = st.lists(names, min_size=1, max_size=4, unique=True)
categories = st.builds(Category, action=st.sampled_from(Action), masks=lists) | st.builds(
    Category, action=st.sampled_from(Action), masks=lists, erases=lists
)
policies = st.builds(
    Policy,
    name=names,
    description=st.text(st.characters(categories=["L", "N", "P", "S"]) | st.just(" "), max_size=8),
    budget=st.builds(Budget, max_share_masked=st.floats(0, 1, exclude_min=True)),
    categories=st.dictionaries(names, categories, min_size=1, max_size=4),
)


def reversed_lists(part):
    return part.model_copy(update={"masks": part.masks[::-1], "erases": part.erases[::-1]})


@settings(max_examples=40)
@given(policies, st.randoms())
def test_the_digest_follows_the_effect_and_nothing_else(policy, random):
    shuffled = list(policy.categories.items())
    random.shuffle(shuffled)
    turned = {name: reversed_lists(part) for name, part in shuffled}
    same = Policy(name="other", description="words", budget=policy.budget, categories=turned)
    assert same.digest == policy.digest
    name, part = shuffled[0]
    more = {**policy.categories, name: part.model_copy(update={"masks": (*part.masks, "one-more")})}
    assert Policy(name=policy.name, budget=policy.budget, categories=more).digest != policy.digest
    assert policy == policy.model_copy(deep=True)


@given(policies)
def test_a_written_policy_reads_back_equal(tmp_path_factory, policy):
    body = policy.model_dump(mode="json") | {"apiVersion": "safeflux/v1", "kind": "Policy"}
    del body["adapter_allowlist"], body["adapter_max_scale"]
    for category in body["categories"].values():
        if not category["erases"]:
            del category["erases"]
    path = tmp_path_factory.mktemp("p") / "p.yaml"
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    assert load_policy(path) == policy


known_keys = st.sampled_from([*PolicyFile.model_fields, *Budget.model_fields, *Category.model_fields, "weapons", "x"])
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known_keys, inner, max_size=5),
    max_leaves=10,
)


@given(trees)
def test_any_wrong_tree_gives_errors_with_places(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("p") / "p.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    # No policy comes out of such a tree: nothing in it draws the right apiVersion.
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    assert all(issue.line >= 1 and issue.column >= 1 for issue in caught.value.issues)


def test_the_schema_is_draft_07_and_knows_every_key():
    schema = policy_schema()
    text = json.dumps(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in text
    assert set(re.findall(r'"\$ref": "#/definitions/(\w+)"', text)) == set(schema["definitions"])
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"apiVersion", "kind", "name"}
    assert "extends" in schema["properties"]


def patterns(schema):
    if isinstance(schema, dict):
        yield from [schema["pattern"]] if isinstance(schema.get("pattern"), str) else ()
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from patterns(part)


@pytest.mark.parametrize("schema", [policy_schema, pack_schema, profile_schema], ids=lambda each: each.__name__)
def test_every_pattern_has_words(schema):
    found = set(patterns(schema())) - {_ADDRESS_SCHEMA["pattern"]}  # addresses are checked by a function
    assert all(pattern_words(pattern) for pattern in found)
