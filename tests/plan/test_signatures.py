"""Policies that want signatures: who may sign, what a child may change, and that nothing else is written."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.errors import PolicyError, SignatureError
from safeflux.evidence.keys import read_public_key
from safeflux.evidence.signatures import sign_file, signature_path
from safeflux.masks.file import save_masks
from safeflux.masks.store import open_store
from safeflux.model.guard import guard
from safeflux.plan.lock import Lock
from safeflux.policy.diff import Verdict, compare, verdict
from safeflux.policy.load import Action, Category, Policy, PolicyFileError, Signatures, load_policy, policy_schema
from tests.helpers.keys import make_keys
from tests.helpers.models import WEIGHTS
from tests.helpers.policies import BLADES, BOTH

A, B = "a" * 64, "b" * 64
HEAD = "apiVersion: safeflux/v1\nkind: Policy\nname: {}\n"
WEAPONS = "categories:\n  weapons: {masks: [blades]}\n"


@pytest.fixture
def keys(tmp_path):
    """A private key and its public half, in PEM."""
    return make_keys(tmp_path, "ours")


def wanting(policy, *digests):
    """The policy, with signatures by one of these keys."""
    content = {name: getattr(policy, name) for name in type(policy).model_fields}
    return Policy(**content | {"signatures": Signatures(keys=digests)})


@pytest.fixture
def signed(keys, store):
    """A policy that wants our signature on two masks, which have it; and the public key."""
    for path in sorted(store.rglob("*.safetensors")):
        sign_file(path, keys[0])
    return wanting(BOTH, read_public_key(keys[1]).digest), keys[1]


def test_signed_masks_are_written_and_a_swap_asks_for_them_too(transformer, store, signed):
    policy, key = signed
    handle = guard(transformer, BLADES, store=store)
    handle.swap(policy, store=open_store(store, [key]))
    assert handle.verify().ok
    handle.undo()
    handle = guard(transformer, policy, store=store, keys=[key])
    assert handle.verify().ok
    assert handle.receipt()["policy"]["effective"]["signatures.keys"] == list(policy.signatures.keys)


def tamper_signature(path):
    bundle = json.loads(signature_path(path).read_bytes())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    signature_path(path).write_text(json.dumps(bundle))


def exchange(path):
    """Another mask that we signed, under this one's name."""
    other = path.with_name("spirits.safetensors")
    shutil.copy(other, path)
    shutil.copy(signature_path(other), signature_path(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: signature_path(path).unlink(), "blades.safetensors: is not signed"),
        (tamper_signature, "was edited, or not made with the key"),
        (exchange, "is for a file named 'spirits.safetensors', not 'blades.safetensors'"),
    ],
)
def test_without_a_true_signature_nothing_is_written(transformer, store, signed, bits_of, change, told):
    policy, key = signed
    before = bits_of(transformer)
    change(next(store.rglob("blades.safetensors")))
    with pytest.raises(SignatureError, match=f"^category 'weapons': .*{told}"):
        guard(transformer, policy, store=store, keys=[key])
    assert bits_of(transformer) == before


def test_a_valid_mask_that_was_put_in_the_place_of_a_signed_one_is_refused(
    transformer, store, signed, make_masks, make_meta
):
    policy, key = signed
    save_masks(next(store.rglob("blades.safetensors")), make_masks(9), make_meta())
    with pytest.raises(SignatureError, match=r"is not what was signed .*: it changed"):
        guard(transformer, policy, store=store, keys=[key])


def test_the_keys_must_be_given_and_listed(transformer, store, signed, tmp_path):
    policy, key = signed
    with pytest.raises(
        SignatureError, match=f"must be signed with a key that the policy lists .*{policy.signatures.keys[0]}"
    ):
        guard(transformer, policy, store=store)
    with pytest.raises(SignatureError, match="none of these was given"):
        guard(transformer, wanting(BOTH, A), store=store, keys=[key])


def test_masks_on_audit_are_checked_too(transformer, store, signed):
    policy, key = signed
    categories = policy.categories | {"alcohol": Category(action=Action.AUDIT, masks=("spirits",))}
    watched = policy.model_copy(update={"categories": categories})
    signature_path(next(store.rglob("spirits.safetensors"))).unlink()
    with pytest.raises(SignatureError, match="category 'alcohol'"):
        guard(transformer, watched, store=store, keys=[key], dry_run=True)


def test_a_signed_copy_in_a_folder_stands_in_for_a_file_that_cannot_be_signed_where_it_is(
    transformer, store, signed, tmp_path
):
    policy, key = signed
    unsigned = tmp_path / "first"
    shutil.copytree(store, unsigned, ignore=shutil.ignore_patterns("*.sig"))
    assert guard(transformer, policy, store=[unsigned, store], keys=[key]).verify().ok


@pytest.mark.parametrize("command", ["plan", "lock"])
def test_the_command_line_takes_keys(base_transformer, store, signed, tmp_path, command):
    policy, key = signed
    base_transformer.save_pretrained(tmp_path / "model" / "transformer")
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD.format("mine") + f"signatures: {{keys: [{policy.signatures.keys[0]}]}}\n" + WEAPONS)
    arguments = ["policy", command, str(path), str(tmp_path / "model"), "--store", str(store)]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: {path}:6: category 'weapons': ")
    assert "--key on the command line" in refused.stderr
    assert CliRunner().invoke(main, [*arguments, "--key", str(key)]).exit_code == 0


def test_a_policy_without_the_newer_keys_has_the_digest_that_it_had_before_them():
    assert BLADES.signatures == Signatures()
    content = BLADES.model_dump(
        mode="json", exclude={"name", "description", "signatures", "adapter_max_scale", "stores"}
    )
    del content["categories"]["weapons"]["erases"]
    text = json.dumps({"apiVersion": "safeflux/v1"} | content, sort_keys=True, separators=(",", ":"))
    assert BLADES.digest == hashlib.sha256(text.encode()).hexdigest()
    assert wanting(BLADES, A).digest != BLADES.digest
    assert wanting(BLADES, A, B).digest == wanting(BLADES, B, A).digest


@pytest.fixture
def write(tmp_path):
    def _write(name: str, body: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(HEAD.format(name) + body)
        return path

    return _write


@pytest.mark.parametrize(
    ("parent", "child", "keys"),
    [
        ("", f"signatures: {{keys: [{A}]}}\n", (A,)),
        (f"signatures: {{keys: [{A}, {B}]}}\n", f"signatures: {{keys: [{B}]}}\n", (B,)),
        (f"signatures: {{keys: [{A}]}}\n", "", (A,)),
        (f"signatures: {{keys: [{A}]}}\n", "signatures: {}\n", (A,)),
    ],
)
def test_a_child_may_want_signatures_or_take_fewer_keys(write, parent, child, keys):
    write("parent", parent + WEAPONS)
    assert load_policy(write("child", "extends: parent.yaml\n" + child)).signatures.keys == keys


@pytest.mark.parametrize(
    ("parent", "child"),
    [(f"[{A}]", f"[{A}, {B}]"), (f"[{A}]", f"[{B}]"), (f"[{A}]", "[]")],
)
def test_a_child_may_not_take_other_keys_or_drop_them(write, parent, child):
    write("parent", f"signatures: {{keys: {parent}}}\n" + WEAPONS)
    path = write("child", f"extends: parent.yaml\nsignatures: {{keys: {child}}}\n")
    with pytest.raises(PolicyFileError, match=r"child.yaml:5:20: loosens signatures.keys: the parent has a{64}"):
        load_policy(path)


def test_what_is_no_digest_is_told_in_place(write):
    with pytest.raises(PolicyFileError, match=r"signatures.keys.0: 'ours.pem' is not a sha256"):
        load_policy(write("mine", "signatures: {keys: [ours.pem]}\n" + WEAPONS))


def test_a_comparison_says_which_way_a_change_goes():
    plain, one, two = BLADES, wanting(BLADES, A), wanting(BLADES, A, B)
    assert verdict(compare(plain, one)) is verdict(compare(two, one)) is Verdict.TIGHTENED
    assert verdict(compare(one, plain)) is verdict(compare(one, two)) is Verdict.RELAXED
    assert verdict(compare(one, wanting(BLADES, B))) is Verdict.MIXED
    assert verdict(compare(one, one)) is Verdict.SAME
    assert [str(change) for change in compare(plain, one)] == [f"tightens  signatures.keys: nothing -> [{A}]"]


def test_editors_know_the_key():
    keys = policy_schema()["definitions"]["Signatures"]["properties"]["keys"]
    assert keys["items"]["pattern"] == "^[0-9a-f]{64}$"


def test_keys_that_nothing_asks_for_are_an_error(transformer, store, keys, bits_of, tmp_path):
    before = bits_of(transformer)
    for key in (keys[1], tmp_path / "no such file.pem"):
        with pytest.raises(SignatureError, match=r"'blades-only': keys were given .*, but the policy lists none"):
            guard(transformer, BLADES, store=store, keys=[key])
    assert bits_of(transformer) == before
    handle = guard(transformer, BLADES, store=store)
    with pytest.raises(SignatureError, match="lists none"):
        handle.swap(BOTH, store=open_store(store, [keys[1]]))
    assert handle.plan.policy is BLADES
    for key in (keys[1], "no such file.pem"):
        for command in (["policy", "plan", "strict"], ["verify", "emoji-flux", "--base", "emoji-flux"]):
            result = CliRunner().invoke(main, [*command, "--key", str(key)])
            assert result.exit_code == 1
            assert "lists none, so no signature would be checked" in result.stderr


def test_an_old_revision_with_its_old_signature_is_stopped_by_a_lock_alone(
    transformer, store, signed, make_masks, make_meta, keys, tmp_path
):
    policy, key = signed
    path = next(store.rglob("blades.safetensors"))
    old = path.read_bytes(), signature_path(path).read_bytes()
    save_masks(path, make_masks(9, WEIGHTS, 0.02), make_meta())
    sign_file(path, keys[0])
    plan = guard(transformer, policy, store=store, keys=[key], dry_run=True).plan
    Lock.of(plan).write(tmp_path / "lock.json")
    path.write_bytes(old[0])
    signature_path(path).write_bytes(old[1])
    assert guard(transformer, policy, store=store, keys=[key], dry_run=True)  # the signature is valid: nothing is newer
    with pytest.raises(PolicyError, match=r"mask set 'blades' is sha256:.*, locked was sha256:"):
        guard(transformer, policy, store=store, keys=[key], lock=tmp_path / "lock.json")
