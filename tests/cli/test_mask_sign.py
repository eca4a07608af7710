"""The commands that sign and verify, and what they say where the extra is not installed."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.evidence.keys import read_public_key
from safeflux.evidence.signatures import sign_file, verify_file
from safeflux.masks.file import save_masks
from tests.helpers.keys import encrypt_key, make_keys

PASSWORD = "open, please"


@pytest.fixture
def keys(tmp_path):
    """A private key and its public half."""
    return make_keys(tmp_path, "ours")


@pytest.fixture
def mask(tmp_path, make_masks, make_meta):
    """A mask file, not signed yet."""
    path = tmp_path / "blades.safetensors"
    save_masks(path, make_masks(1), make_meta())
    return path


def test_the_commands(keys, mask, tmp_path):
    other = make_keys(tmp_path, "theirs")[1]
    digest = read_public_key(keys[1]).digest
    signed = CliRunner().invoke(main, ["mask", "sign", str(mask), "--key", str(keys[0])])
    assert (signed.exit_code, signed.stdout) == (0, f"{mask}.sig: written, with the key sha256:{digest}\n")
    found = CliRunner().invoke(main, ["mask", "verify", str(mask), "--key", str(keys[1])])
    assert (found.exit_code, found.stdout) == (0, f"{mask}: signed with the key sha256:{digest}\n")
    arguments = ["mask", "verify", str(mask), "--key", str(keys[1]), "--json"]
    assert json.loads(CliRunner().invoke(main, arguments).stdout) == {"ok": True, "signed": {str(mask): digest}}
    arguments = ["mask", "sign", str(mask), "--key", str(keys[0]), "--json"]
    told = {"key": digest, "signed": [{"file": str(mask), "signature": f"{mask}.sig"}]}
    assert json.loads(CliRunner().invoke(main, arguments).stdout) == told
    wrong = CliRunner().invoke(main, ["mask", "verify", str(mask), "--key", str(other)])
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith(f"error: {mask}.sig: was not made with the key of")
    assert CliRunner().invoke(main, ["mask", "verify"]).exit_code == 2


def test_one_bad_file_of_many_hides_no_other(keys, mask, tmp_path):
    gone, key = str(tmp_path / "gone"), ["--key", str(keys[0])]
    result = CliRunner().invoke(main, ["mask", "sign", str(mask), gone, *key])
    assert (result.exit_code, result.stderr) == (3, f"error: {gone}: does not exist; expected a file or a folder\n")
    assert not (tmp_path / f"{mask.name}.sig").exists()
    sign_file(mask, keys[0])
    other = tmp_path / "other"
    other.write_bytes(b"")
    arguments = ["mask", "verify", str(other), str(mask), "--key", str(keys[1])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {other}: is not signed")
    assert result.stdout.startswith(f"{mask}: signed with the key")
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (told["ok"], list(told["signed"]), list(told["errors"])) == (False, [str(mask)], [str(other)])


def test_the_password_is_asked_for_or_comes_from_the_environment(keys, mask):
    locked = encrypt_key(keys[0], PASSWORD)
    arguments = ["mask", "sign", str(mask), "--key", str(locked)]
    for options, secret, typed in (
        ([], {"SAFEFLUX_KEY_PASSWORD": PASSWORD}, None),
        (["--password"], {}, PASSWORD + "\n"),
    ):
        done = CliRunner().invoke(main, [*arguments, *options], env=secret, input=typed)
        assert done.exit_code == 0
        assert PASSWORD not in done.output
        assert verify_file(mask, keys[1])
    assert "password was not given" in CliRunner().invoke(main, arguments).stderr


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
from safeflux.errors import SignatureError
from safeflux.evidence.signatures import sign_file, verify_file
for act, key in ((sign_file, sys.argv[3]), (verify_file, sys.argv[4])):
    try:
        act(sys.argv[2], key)
    except SignatureError as error:
        print(error)
"""


@pytest.mark.parametrize("package", ["model_signing", "cryptography", "OpenSSL"])
def test_without_the_extra_it_says_what_to_install(keys, mask, package):
    sign_file(mask, keys[0])
    arguments = [sys.executable, "-c", WITHOUT, package, str(mask), *map(str, keys)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ).stdout.splitlines()
    assert len(told) == 2
    assert all(package in line and "pip install 'safeflux[sign]'" in line for line in told)
