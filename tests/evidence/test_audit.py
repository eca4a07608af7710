"""The audit log: every edit is found, and neither threads, processes nor a kill break the chain."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.errors import AuditError
from safeflux.evidence.audit import AuditLog, verify_log
from safeflux.model.guard import guard
from tests.helpers.policies import BLADES


@pytest.fixture
def log(tmp_path):
    """A log of four lines; its file, and the hash of each line."""
    path = tmp_path / "audit.jsonl"
    return path, [AuditLog(path).append(action, {"n": n}) for n, action in enumerate(("guard", "swap", "swap", "undo"))]


def test_a_receipt_is_appended_whole(transformer, store, tmp_path):
    path = tmp_path / "audit.jsonl"
    with guard(transformer, BLADES, store=store) as handle:
        receipt = handle.receipt()
        head = AuditLog(path).append("guard", receipt)
    head = AuditLog(path).append("undo", handle.receipt())
    found = verify_log(path)
    assert (found.lines, found.head, found.faults) == (2, head, ())
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["receipt"] == receipt
    assert (first["action"], second["receipt"]["state"]) == ("guard", "UNGUARDED")


EDITS = {
    "a value changed": (lambda lines: [lines[0], lines[1].replace('"n": 1', '"n": 7'), *lines[2:]], "line 2: .*edited"),
    "an action changed": (lambda lines: [lines[0].replace("guard", "gourd"), *lines[1:]], "line 1: .*edited"),
    "a line taken out": (lambda lines: [lines[0], *lines[2:]], "line 2: the previous line"),
    "the first taken out": (lambda lines: lines[1:], "line 1: the previous line"),
    "two lines swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: the previous line"),
    "a line twice": (lambda lines: [lines[0], lines[0], *lines[1:]], "line 2: the previous line"),
    "a blank line": (lambda lines: [lines[0], "", *lines[1:]], "line 2: is not a line"),
    "a member more": (lambda lines: [lines[0][:-1] + ', "x": 1}', *lines[1:]], "line 1: is not a line"),
    "a member less": (lambda lines: ["{}", *lines[1:]], "line 1: is not a line"),
    "no text": (lambda lines: [*lines, "\x00\xff"], "line 5: is not a line"),
}


SPELLINGS = {
    "a second receipt": lambda line: line.replace('"receipt": ', '"receipt": {"n": 7}, "receipt": ', 1),
    "a second action": lambda line: line[:-1] + ', "action": "undo"}',
    "no spaces": lambda line: line.replace(": ", ":").replace(", ", ","),
    "more spaces": lambda line: line.replace('"receipt": ', '"receipt":  '),
    "spaces at the end": lambda line: line + " ",
    "CRLF": lambda line: line + "\r",
    "another number": lambda line: line.replace('"x": 2.5', '"x": 25e-1'),
    "one digit more": lambda line: line.replace('"x": 2.5', '"x": 2.50'),
    "another letter": lambda line: line.replace('"guard"', '"\\u0067uard"'),
    "letters as they are": lambda line: line.replace("\\u00fc", "ü"),
    "another order": lambda line: '{"action": "guard", ' + line[1:].replace('"action": "guard", ', ""),
    "another order in the receipt": lambda line: line.replace('"n": 1, "who": "\\u00fc"', '"who": "\\u00fc", "n": 1'),
    "NaN": lambda line: line.replace("2.5", "NaN"),
    "deep lists": lambda line: line.replace("2.5", "[" * 50_000 + "]" * 50_000),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_line_has_one_spelling(tmp_path, name):
    path = tmp_path / "audit.jsonl"
    AuditLog(path).append("guard", {"x": 2.5, "n": 1, "who": "ü"})
    line = path.read_text(encoding="utf-8").rstrip("\n")
    assert not verify_log(path).faults
    path.write_bytes((SPELLINGS[name](line) + "\n").encode())
    assert path.read_bytes() != line.encode() + b"\n"
    assert re.match("line 1: is not a line", verify_log(path).faults[0])
    with pytest.raises(AuditError, match="not a line of an audit log"):
        AuditLog(path).append("undo", {})


def test_what_json_cannot_hold_is_refused_and_nothing_is_appended(log):
    path, heads = log
    deep: list = []
    for _ in range(100):
        deep = [deep]
    for receipt in ({"x": float("nan")}, {"x": object()}, {"x": deep}, {"x": "\ud800"}, {1: {"a": 1, 1: 2}}):
        with pytest.raises(AuditError, match=r"JSON cannot hold this receipt.*nothing was appended"):
            AuditLog(path).append("guard", receipt)
    assert verify_log(path).head == heads[-1]
    AuditLog(path).append("guard", {"pair": (1, 2)})
    assert not verify_log(path).faults


def test_a_full_disk_leaves_the_log_as_it_was(log):
    path, _ = log
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2);"
        "from safeflux import AuditLog; AuditLog(sys.argv[1]).append('guard', {'fill': 'x' * 5000})"
    )
    before = path.read_bytes()
    command = [sys.executable, "-c", code, str(path), str(len(before) + 100)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "cannot be written to (File too large); nothing was appended" in done.stderr
    assert path.read_bytes() == before


def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AuditError, match="not a regular file"):
        verify_log(tmp_path / "pipe")
    with pytest.raises(AuditError, match="not a regular file"):
        AuditLog(tmp_path / "pipe").append("guard", {})


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_found(log, edit):
    path, heads = log
    change, told = EDITS[edit]
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    found = verify_log(path, head=heads[-1])
    assert found.faults
    assert re.match(told, found.faults[0])
    result = CliRunner().invoke(main, ["audit", "verify", str(path)])
    assert result.exit_code == 1
    assert f"{path}: line " in result.stderr


def test_any_single_changed_byte_is_found(log):
    path, _ = log
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert verify_log(path).faults, f"byte {place}"


def test_lines_that_were_cut_off_are_found_by_the_hash_that_was_kept(log):
    path, heads = log
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert not verify_log(path).faults
    assert "truncated" in verify_log(path, head=heads[-1]).faults[0]
    assert not verify_log(path, head=heads[1]).faults  # it has grown since


def test_the_command_says_the_head(log):
    path, heads = log
    result = CliRunner().invoke(main, ["audit", "verify", str(path), "--head", heads[-1]])
    assert (result.exit_code, result.stdout) == (0, f"{path}: 4 lines, unbroken; head {heads[-1]}\n")
    told = json.loads(CliRunner().invoke(main, ["audit", "verify", str(path), "--json"]).stdout)
    assert told == {"ok": True, "lines": 4, "head": heads[-1], "faults": []}
    assert CliRunner().invoke(main, ["audit", "verify", str(path) + "x"]).stderr.startswith("error: ")


def _append(path, count):
    for n in range(count):
        AuditLog(path).append("verify", {"n": n, "fill": "x" * 3000})


def test_threads_and_processes_append_to_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    start = multiprocessing.get_context("spawn")
    workers = [start.Process(target=_append, args=(path, 20)) for _ in range(2)]
    workers += [threading.Thread(target=_append, args=(path, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    found = verify_log(path)
    assert (found.lines, found.faults) == (100, ())


WRITE = """
import sys
from safeflux import AuditLog
log = AuditLog(sys.argv[1])
while True:
    print(log.append("verify", {"fill": "x" * 200_000}), flush=True)
"""


def test_a_killed_writer_leaves_whole_lines_or_one_that_the_next_cuts_off(tmp_path):
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            heads = [writer.stdout.readline().strip() for _ in range(3)]
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(60)
        AuditLog(path).append("guard", {})
        assert not verify_log(path, head=heads[-1]).faults
    lines = verify_log(path).lines
    for part in (b'{"seq": 99, "act', b'{"s'):  # as a killed writer leaves it
        with path.open("ab") as file:
            file.write(part)
        AuditLog(path).append("guard", {})
        lines += 1
        found = verify_log(path)
        assert (found.lines, found.faults) == (lines, ())


def test_what_is_no_log_is_not_appended_to(tmp_path):
    path = tmp_path / "notes.txt"
    for text in ("shopping list\nmilk\n", "shopping list\nmilk", "milk", "{}\n"):
        path.write_text(text)
        with pytest.raises(AuditError, match="not a line of an audit log"):
            AuditLog(path).append("guard", {})
        assert path.read_text() == text
    with pytest.raises(AuditError, match="cannot be written to"):
        AuditLog(tmp_path / "missing" / "audit.jsonl").append("guard", {})


def test_a_file_that_is_no_log_prints_some_of_its_lines_and_how_many_more(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x\n" * 3000)
    run = CliRunner().invoke(main, ["audit", "verify", str(tmp_path / "model.bin")])
    lines = run.stderr.splitlines()
    assert (run.exit_code, len(lines)) == (1, 21)
    assert lines[-1].endswith("model.bin: and 2,980 more (--json lists them)")
    told = CliRunner().invoke(main, ["audit", "verify", str(tmp_path / "model.bin"), "--json"])
    assert len(json.loads(told.stdout)["faults"]) == 3000
