"""Exit codes: 1 for what was looked at and is not so, 3 for what could not be looked at, in every command alike."""

import os
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.cli._lazy import EXIT_CODES, exit_code
from safeflux.errors import PolicyError, StoreError
from tests.helpers.key_presses import heed_key_presses

LONG = "n" * 300
BAD = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\nextends: strict\nadpaters: deny\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with policies, one of which is not valid."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(BAD.replace("adpaters", "adapters"))
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "log").write_text("nothing of a log\n")
    (tmp_path / "masks").write_text("no folder")
    test = "apiVersion: safeflux/v1\nkind: PolicyTest\npolicy: moderate\nexpect: {enforced: [horror]}\n"
    (tmp_path / "test.yaml").write_text(test)
    return lambda line: CliRunner().invoke(main, line.split(), catch_exceptions=False)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("policy check good.yaml strict", 0),
        ("policy check good.yaml bad.yaml", 1),
        ("policy explain bad.yaml", 1),
        ("policy diff --forbid-relaxed strict moderate", 1),
        ("policy test test.yaml", 1),
        ("verify emoji-flux --base emoji-flux --policy strict", 1),
        ("audit verify log", 1),
        ("mask show log", 1),
        ("policy check", 2),
        ("policy check strict --format xml", 2),
        ("policy explain strict --nothing", 2),
        ("policy check nowhere.yaml", 3),
        ("policy check bad.yaml nowhere.yaml", 3),
        ("policy check strct", 3),
        ("pack check charactr", 3),
        ("pack check emoji:charactr", 3),
        ("pack new mine.yaml --from charactr", 3),
        ("preview --model flux2-klein-4", 3),
        ("policy explain nowhere.yaml", 3),
        ("policy explain strict --store nowhere", 3),
        ("policy explain strict --store masks", 3),
        ("policy plan strict nowhere", 3),
        ("policy plan strict --lock nowhere.json", 3),
        ("policy plan nowhere.yaml", 3),
        ("policy lock strict --out nowhere/lock.json", 3),
        ("policy new nowhere/mine.yaml", 3),
        ("policy test nowhere.yaml", 3),
        ("verify nowhere", 3),
        ("verify .", 3),
        ("bake nowhere out", 3),
        ("bake emoji-flux out --policy nowhere.yaml", 3),
        ("audit verify nowhere", 3),
        ("mask show nowhere", 3),
        ("mask card nowhere", 3),
        ("mask diff nowhere nowhere", 3),
        ("mask sign nowhere --key nowhere", 3),
        ("mask verify nowhere --key nowhere", 3),
    ],
)
def test_the_code_says_whether_it_looked(run, line, code):
    result = run(line)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train --category weapons --set batch=[1", 1, "--set batch: expected a value as in YAML"),
        ("train --category weapons --set seed=-1", 1, "seed: expected a number greater than or equal to 0, got -1"),
        ("train --category weapons --set gates.lr=inf", 1, "gates.lr: expected a finite number"),
        ("train --category weapons --set call.height=-8", 1, "height: expected a whole number from 1, got -8"),
        ("train --category weapons --detector=", 2, "--detector: expected a value, got an empty text"),
        ("policy plan strict --lock=", 2, "--lock: expected a value, got an empty text"),
        ("audit statement log --key=", 2, "--key: expected a value, got an empty text"),
        ("audit verify log --head abc", 2, "expected a sha256 of 64 hex digits, got 'abc'"),
        ("audit export log --oscal --control weapons", 2, "expected CATEGORY=ID, got 'weapons'"),
        ("bake emoji-flux emoji-flux", 2, "emoji-flux is the name of the embedded model"),
        ("onnx export emoji-flux emoji-flux", 2, "emoji-flux is the name of the embedded model"),
        ("serve --patience nan", 2, "expected a finite number, got nan"),
        ("policy lock .", 3, ".: no bundled policy has this name"),
        ("train --seed 3 new mine.yaml", 2, "`main train new --help`"),
        ("preview --device nowhere", 2, "--device: 'nowhere' cannot be used"),
        ("preview --call num_inference_steps=-1", 1, "--call num_inference_steps: expected a whole number from 1"),
        (f"train new {LONG}.yaml", 3, "File name too long"),
        (f"train --category weapons --out {LONG}", 3, "File name too long"),
        (f"demo --out {LONG}", 3, "File name too long"),
        (f"policy explain strict --store {LONG}", 3, "File name too long"),
        *(
            (f"{command} --out /proc/x", 3, "/proc is not a folder that can be written to")  # root may, by permissions
            for command in ("demo", "preview", "attack", "eval", "train --category weapons")
        ),
    ],
)
def test_a_bad_value_is_one_clear_error_and_nothing_begins(run, tmp_path, line, code, message):
    before = sorted(tmp_path.iterdir())
    result = run(line)
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_mask_that_is_in_no_store_is_missing(run, tmp_path):
    text = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ncategories: {weapons: {masks: [nowhere]}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert run("policy plan mine.yaml").exit_code == 3
    assert run("verify emoji-flux --base emoji-flux --policy mine.yaml").exit_code == 3


def test_the_cause_decides():
    missing, wrong, wrapped = PolicyError("missing"), PolicyError("wrong"), PolicyError("wrapped")
    missing.__cause__, wrong.__cause__, wrapped.__cause__ = FileNotFoundError(), ValueError(), missing
    assert [exit_code(error) for error in (missing, wrong, wrapped, StoreError("gone"), None)] == [3, 1, 3, 3, 1]


def commands(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(click.Context(group), name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [(), *commands(main)], ids=" ".join)
def test_every_help_says_the_codes(path):
    shown = CliRunner().invoke(main, [*path, "--help"], catch_exceptions=False).stdout
    assert " ".join(shown.split()).count(EXIT_CODES) == 1


@pytest.mark.parametrize("words", ["policy", "policy check", "mask show", "audit verify", "onnx export"])
def test_a_slip_is_told_with_the_nearest_command(run, words):
    result = run(f"{words[:-1]}x")
    assert result.exit_code == 2
    assert f"did you mean '{words.split()[-1]}'?" in result.stderr


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        ("chek", "'safeflux policy check' or 'safeflux pack check'"),
        ("mask lok", "'safeflux policy lock'"),
        ("policy verify", "'safeflux verify' or 'safeflux mask verify' or 'safeflux audit verify'"),
    ],
)
def test_a_command_of_another_group_is_told_with_its_group(run, words, suggested):
    result = run(words)
    assert result.exit_code == 2
    assert f"did you mean {suggested}?" in result.stderr


def test_an_interrupt_ends_in_130(tmp_path):
    """A real Ctrl-C, while a real command waits for its standard input."""
    command = [sys.executable, "-m", "safeflux", "policy", "check", "-"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, **pipes, text=True, preexec_fn=heed_key_presses)
    deadline = time.monotonic() + 60
    while "read" not in _waits_in(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "interrupted\n")


def test_an_interrupt_while_modules_load_ends_in_130(tmp_path):
    """The first import of the commands, click, stands for a slow disk: it presses the key."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from safeflux.__main__ import main; main()"
    command = [sys.executable, "-c", start, str(tmp_path), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heed_key_presses)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "moment",
    ["click.Context.close = press", "click.Context.exit = press", "import atexit; atexit.register(press)"],
    ids=["after the last line", "at the exit", "while the interpreter ends"],
)
def test_an_interrupt_after_the_work_is_done_is_no_traceback(moment):
    """The last line is on the screen already when the key is pressed."""
    start = "import click, os, signal; press = lambda *_: os.kill(os.getpid(), signal.SIGINT)"
    start = f"{start}; {moment}; from safeflux.__main__ import main; main()"
    command = [sys.executable, "-c", start, "policy", "check", "strict"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heed_key_presses)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert done.stdout.startswith("strict: ok")


def test_an_empty_argument_is_no_folder_and_no_missing_option(tmp_path, monkeypatch):
    """As a path it would be the current folder, and as a lock or a key it would be none."""
    monkeypatch.chdir(tmp_path)
    for arguments, place in (
        (["policy", "check", ""], "the argument after 'check'"),
        (["verify", "emoji-flux", "--base", ""], "--base"),
        (["eval", "--policy", ""], "--policy"),
        ([""], "the command"),
    ):
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert (result.exit_code, f"{place}: expected a value, got an empty text" in result.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [["policy", "explain", "strict"], ["mask", "show", "weapons"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_verdict(arguments):
    """With `set -o pipefail`, 1 would say that the policy is not valid."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "safeflux", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_closed_stderr_stops_no_work(tmp_path):
    command = [sys.executable, "-m", "safeflux", "bake", "emoji-flux", str(tmp_path / "guarded")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=lambda: os.close(2))
    assert (done.returncode, "bits off" in done.stdout) == (0, True)


def test_standard_input_that_is_closed_is_told():
    command = [sys.executable, "-m", "safeflux", "policy", "check", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.close(0))
    assert done.returncode == 3
    assert done.stderr == "error: -: standard input is closed; name a file, or pipe a policy in\n"


def _waits_in(pid):
    """Where the process sleeps: in the read of the pipe once it is there."""
    with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
        name = file.read()
    return name if "pipe" in name else ""


def test_what_the_terminal_cannot_show_is_a_question_mark(tmp_path):
    text = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\ndescription: 武器\nextends: strict\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "safeflux", "policy", "explain", "mine.yaml"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"mine: ??")
