"""Signed statements: the signature is one that openssl checks, and no change of the statement goes unseen."""

import base64
import copy
import json
import subprocess

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.errors import SignatureError
from safeflux.evidence.audit import AuditLog
from safeflux.evidence.envelope import check_statement, pae, sign_statement
from safeflux.evidence.keys import read_public_key
from safeflux.model.guard import guard
from safeflux.plan.statement import make_statement
from tests.helpers.keys import encrypt_key, make_keys
from tests.helpers.policies import BLADES, BOTH

STATEMENT = {"_type": "https://in-toto.io/Statement/v1", "subject": [], "predicate": {"é": 1}}


def test_what_was_signed_comes_back_and_openssl_agrees(tmp_path):
    private, public = make_keys(tmp_path, "key")
    envelope = sign_statement(STATEMENT, private)
    assert check_statement(envelope, public) == STATEMENT
    assert (
        check_statement(sign_statement(STATEMENT, encrypt_key(private, "word"), password="word"), public) == STATEMENT
    )
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == read_public_key(public).digest
    (tmp_path / "signed").write_bytes(pae(base64.b64decode(envelope["payload"])))
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "signature"]
    assert subprocess.run([*command, tmp_path / "signed"], check=False).returncode == 0


def test_any_change_and_any_other_key_is_refused(tmp_path):
    private, public = make_keys(tmp_path, "key")
    _, other = make_keys(tmp_path, "other")
    envelope = sign_statement(STATEMENT, private)
    with pytest.raises(SignatureError, match="no signature of this statement was made with the key"):
        check_statement(envelope, other)
    changed = copy.deepcopy(envelope)
    changed["payload"] = base64.b64encode(json.dumps({**STATEMENT, "subject": [1]}).encode()).decode()
    with pytest.raises(SignatureError, match="or the statement was changed since"):
        check_statement(changed, public)
    for member, value in (("payload", "?"), ("signatures", None), ("signatures", [{}]), ("payloadType", "text/plain")):
        with pytest.raises(SignatureError, match="expected a DSSE envelope"):
            check_statement({**envelope, member: value}, public)
    with pytest.raises(SignatureError, match="no signature"):
        check_statement({**envelope, "signatures": []}, public)


@pytest.fixture
def log(tmp_path, transformer, store):
    """An audit log with a guard, a swap and an undo, and its receipts."""
    path, handle = tmp_path / "audit.jsonl", guard(transformer, BLADES, store=store)
    receipts = [handle.receipt()]
    handle.swap(BOTH, store=store)
    receipts.append(handle.receipt())
    handle.undo()
    receipts.append(handle.receipt())
    for action, receipt in zip(("guard", "swap", "undo"), receipts, strict=True):
        AuditLog(path).append(action, receipt)
    return path, receipts


def test_the_command_prints_a_statement_of_a_line_signed_on_request(log, tmp_path):
    path, receipts = log
    run = CliRunner().invoke(main, ["audit", "statement", str(path)])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == make_statement(receipts[-1])
    private, public = make_keys(tmp_path, "key")
    run = CliRunner().invoke(main, ["audit", "statement", str(path), "--line", "2", "--key", str(private)])
    assert check_statement(json.loads(run.stdout), public) == make_statement(receipts[1])
    run = CliRunner().invoke(main, ["audit", "statement", str(path), "--line", "1", "--predicate", "guard"])
    assert json.loads(run.stdout)["predicate"]["state"] == "GUARDED"


def test_a_log_that_is_broken_or_too_short_gives_no_statement(log):
    path, _ = log
    run = CliRunner().invoke(main, ["audit", "statement", str(path), "--line", "4"])
    assert run.exit_code == 1
    assert "expected a line from 1 to 3, got 4" in run.stderr
    path.write_text(path.read_text().replace("GUARDED", "guarded", 1))
    run = CliRunner().invoke(main, ["audit", "statement", str(path)])
    assert run.exit_code == 1
    assert "it was edited; a broken log is not used" in run.stderr
    assert not run.stdout
    run = CliRunner().invoke(main, ["audit", "statement", str(path.with_name("none"))])
    assert run.exit_code == 3


def test_errors_about_a_line_say_which(log):
    path, _ = log
    AuditLog(path).append("note", {"n": 1})
    run = CliRunner().invoke(main, ["audit", "statement", str(path), "--line", "4"])
    assert run.exit_code == 1
    assert run.stderr.startswith(f"error: {path}: line 4: format: expected a receipt")
    run = CliRunner().invoke(main, ["audit", "export", str(path), "--oscal"])
    assert (run.exit_code, run.stdout) == (1, "")
    assert run.stderr.startswith(f"error: {path}: line 4: lacks 'time'")
    empty = path.with_name("empty")
    empty.touch()
    run = CliRunner().invoke(main, ["audit", "statement", str(empty), "--line", "1"])
    assert run.stderr == f"error: {empty}: an empty log has no lines, got 1\n"
