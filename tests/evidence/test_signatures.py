"""Signatures: whatever was changed is refused, in words, and other tools read what we write."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from safeflux.errors import SignatureError
from safeflux.evidence.keys import check_private_key, read_public_key
from safeflux.evidence.signatures import check_signed, sign_file, signature_path, verify_file
from safeflux.masks.file import save_masks
from tests.helpers.keys import encrypt_key, make_keys, write_keys

PASSWORD = "open, please"


@pytest.fixture
def keys(tmp_path):
    """A private key and its public half."""
    return make_keys(tmp_path, "ours")


@pytest.fixture
def other_keys(tmp_path):
    return make_keys(tmp_path, "theirs")


@pytest.fixture
def locked(keys):
    """The same private key, encrypted."""
    return encrypt_key(keys[0], PASSWORD)


@pytest.fixture
def mask(tmp_path, make_masks, make_meta):
    """A mask file, not signed yet."""
    path = tmp_path / "blades.safetensors"
    save_masks(path, make_masks(1), make_meta())
    return path


@pytest.fixture
def baked(tmp_path):
    """A folder as of a model: files in folders, one of them of git."""
    folder = tmp_path / "baked"
    for name in ("model_index.json", "transformer/config.json", ".gitattributes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_and_a_folder_are_signed_and_verified(keys, mask, baked):
    for path in (mask, baked):
        signature = sign_file(path, keys[0])
        assert signature == signature_path(path) == path.parent / f"{path.name}.sig"
        assert verify_file(path, keys[1]) == read_public_key(keys[1]).digest
        sign_file(path, keys[0])  # anew, over the older one
        assert verify_file(path, keys[1])
    assert not list(mask.parent.glob(".*partial"))


def test_a_key_goes_by_the_sha256_that_openssl_tells(keys):
    key = load_pem_public_key(keys[1].read_bytes())
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert read_public_key(keys[1]).digest == check_private_key(keys[0], None).digest == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_larger_curves_sign_too(tmp_path, mask, curve):
    secret, public = make_keys(tmp_path, "large", curve)
    sign_file(mask, secret)
    assert verify_file(mask, public)


def test_the_tool_of_model_signing_reads_ours_and_we_read_its(keys, mask):
    tool = [sys.executable, "-m", "model_signing"]
    sign_file(mask, keys[0])
    check = ["verify", "key", str(mask), "--signature", str(signature_path(mask)), "--public_key", str(keys[1])]
    assert subprocess.run([*tool, *check], capture_output=True, check=False).returncode == 0
    made = ["sign", "key", str(mask), "--signature", str(signature_path(mask)), "--private_key", str(keys[0])]
    subprocess.run([*tool, *made], capture_output=True, check=True)
    assert verify_file(mask, keys[1])
    assert check_signed(mask, sha256(mask), [read_public_key(keys[1]).digest], [keys[1]])


def test_a_file_that_changed_is_refused(keys, mask):
    sign_file(mask, keys[0])
    whole = mask.read_bytes()
    for edited in (whole[:-1], whole + b"\0", whole[:-1] + bytes([whole[-1] ^ 1])):
        mask.write_bytes(edited)
        with pytest.raises(SignatureError, match=r"blades.safetensors: is not what was signed .*: it changed"):
            verify_file(mask, keys[1])


def test_a_folder_tells_what_changed_what_is_missing_and_what_was_put_in(keys, baked):
    sign_file(baked, keys[0])
    (baked / "model_index.json").write_text("other")
    (baked / "transformer/config.json").unlink()
    (baked / ".gitignore").write_text("*")
    with pytest.raises(
        SignatureError, match=r"changed: model_index.json; missing: transformer/config.json; not signed: "
    ):
        verify_file(baked, keys[1])


def test_a_file_of_git_counts_like_any_other(keys, baked):
    sign_file(baked, keys[0])
    (baked / ".gitattributes").write_text("other")
    with pytest.raises(SignatureError, match=r"changed: \.gitattributes"):
        verify_file(baked, keys[1])


def test_the_signature_may_lie_in_the_folder(keys, baked):
    inside = baked / "model.sig"
    sign_file(baked, keys[0]).rename(inside)
    assert verify_file(baked, keys[1], inside)
    (baked / "second.sig").write_text("x")
    with pytest.raises(SignatureError, match=r"not signed: second\.sig"):
        verify_file(baked, keys[1], inside)


def test_a_folder_may_be_named_by_a_dot(keys, baked, monkeypatch):
    monkeypatch.chdir(baked)
    assert sign_file(".", keys[0]) == baked.parent / "baked.sig"
    assert verify_file(".", keys[1])


def test_it_says_what_to_do_where_no_temporary_file_can_be_written(keys, mask, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SignatureError, match="set TMPDIR"):
        sign_file(mask, keys[0])


def test_links_are_refused(keys, baked, mask):
    sign_file(baked, keys[0])
    (baked / "link").symlink_to(mask)
    for act in (sign_file, verify_file):
        with pytest.raises(SignatureError, match="link: expected a file or a folder, not a link"):
            act(baked, keys[act is verify_file])


def test_another_key_is_refused(keys, other_keys, mask):
    sign_file(mask, other_keys[0])
    with pytest.raises(SignatureError, match=r"was not made with the key of .*ours.pub"):
        verify_file(mask, keys[1])


def test_a_signature_that_only_says_that_it_is_ours_is_refused(keys, other_keys, mask):
    sign_file(mask, keys[0])
    ours = json.loads(signature_path(mask).read_bytes())
    sign_file(mask, other_keys[0])
    forged = json.loads(signature_path(mask).read_bytes()) | {"verificationMaterial": ours["verificationMaterial"]}
    signature_path(mask).write_text(json.dumps(forged))
    with pytest.raises(SignatureError, match="was edited, or not made with the key that it names"):
        verify_file(mask, keys[1])


def test_every_edit_of_the_payload_is_refused(keys, mask):
    signature = sign_file(mask, keys[0])
    bundle = json.loads(signature.read_bytes())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for place in range(len(payload)):
        edited = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(edited).decode()
        signature.write_text(json.dumps(bundle))
        with pytest.raises(SignatureError):
            verify_file(mask, keys[1])


def with_second_envelope(bundle):
    """Another spelling of a member, which a lenient reader could take for it."""
    return bundle | {"dsse_envelope": bundle["dsseEnvelope"]}


def without_hint(bundle):
    return bundle | {"verificationMaterial": {"publicKey": {}, "tlogEntries": []}}


@pytest.mark.parametrize(
    "edit",
    [
        with_second_envelope,
        without_hint,
        lambda bundle: bundle | {"mediaType": "text/plain"},
        lambda bundle: bundle["dsseEnvelope"],
        lambda bundle: bundle | {"dsseEnvelope": bundle["dsseEnvelope"] | {"signatures": []}},
        lambda bundle: bundle | {"dsseEnvelope": bundle["dsseEnvelope"] | {"payload": "e30="}},
        lambda bundle: [],
    ],
)
def test_a_malformed_signature_is_refused(keys, mask, edit):
    signature = sign_file(mask, keys[0])
    signature.write_text(json.dumps(edit(json.loads(signature.read_bytes()))))
    with pytest.raises(SignatureError, match=r"blades.safetensors.sig: is not a signature made with a key"):
        verify_file(mask, keys[1])


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{" * 5000, b"[" * 100_000])
def test_what_is_no_signature_is_refused(keys, mask, data):
    signature_path(mask).write_bytes(data)
    with pytest.raises(SignatureError, match="is not a signature"):
        verify_file(mask, keys[1])


def test_a_file_without_a_signature_is_refused(keys, mask):
    with pytest.raises(SignatureError, match=r"is not signed, .*blades.safetensors.sig does not exist; sign it with"):
        verify_file(mask, keys[1])


def test_bytes_that_were_read_are_checked_against_the_keys_that_a_policy_lists(keys, other_keys, mask):
    ours, theirs = (read_public_key(public).digest for _, public in (keys, other_keys))
    sign_file(mask, keys[0])
    assert check_signed(mask, sha256(mask), [theirs, ours], [other_keys[1], keys[1]]) == ours
    with pytest.raises(
        SignatureError, match=f"must be signed with a key that the policy lists .*{theirs}.* none of these"
    ):
        check_signed(mask, sha256(mask), [theirs], [keys[1]])  # the key that signed is not listed
    with pytest.raises(SignatureError, match=r"made with none of the given keys .*theirs.pub"):
        check_signed(mask, sha256(mask), [theirs, ours], [other_keys[1]])
    with pytest.raises(SignatureError, match="changed while it was read"):
        check_signed(mask, "0" * 64, [ours], [keys[1]])


def test_a_signed_mask_cannot_take_the_name_of_another(keys, mask):
    digest = read_public_key(keys[1]).digest
    renamed = mask.with_name("weapons.safetensors")
    signature = sign_file(mask, keys[0])
    shutil.copy(mask, renamed)
    shutil.copy(signature, signature_path(renamed))
    with pytest.raises(SignatureError, match=r"is for a file named 'blades.safetensors', not 'weapons.safetensors'"):
        check_signed(renamed, sha256(renamed), [digest], [keys[1]])


def test_an_encrypted_key_needs_its_password(keys, locked, mask):
    sign_file(mask, locked, password=PASSWORD)
    assert verify_file(mask, keys[1])
    for key, password, told in (
        (locked, None, "password was not given.*--password"),
        (locked, "wrong", "the password is not that of this key; give it again"),
        (keys[0], PASSWORD, "password was given but private key is not encrypted; give none"),
    ):
        with pytest.raises(SignatureError, match=told):
            sign_file(mask, key, password=password)


def test_what_is_no_key_is_refused(tmp_path, keys, mask):
    wrong = rsa.generate_private_key(65537, 2048)
    secret, public = write_keys(tmp_path, "rsa", wrong)
    missing = tmp_path / "missing.pem"
    for key, told in ((secret, "expected a key on the curve P-256, got .*RSA"), (keys[1], "expected a private key")):
        with pytest.raises(SignatureError, match=told):
            sign_file(mask, key)
    for key, told in ((public, "got .*RSA"), (keys[0], "expected a public key"), (missing, "cannot be read")):
        with pytest.raises(SignatureError, match=told):
            verify_file(mask, key)


def test_what_cannot_be_signed_or_written_is_told(tmp_path, keys, mask):
    with pytest.raises(SignatureError, match="none: does not exist"):
        sign_file(tmp_path / "none", keys[0])
    signature_path(mask).mkdir()
    with pytest.raises(SignatureError, match="cannot be written"):
        sign_file(mask, keys[0])
