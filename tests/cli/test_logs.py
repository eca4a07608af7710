"""Log lines: what is said of each change of a guard, at which level, and what `-q` and `-v` print of it."""

import logging

import pytest
import torch
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.model.guard import guard
from safeflux.model.pool.pool import PolicyPool
from safeflux.plan.resolve import shorten
from safeflux.reference.model import EMOJI_FLUX
from tests.helpers.policies import BLADES, BOTH, SPIRITS

WARNING = "warning: policy 'warns': category 'alcohol' is on `warn`, so its masks are not written"


@pytest.fixture
def lines(caplog):
    """Level and text of what the package logged so far."""
    caplog.set_level(logging.DEBUG, "safeflux")

    def read():
        found = [
            (record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("safeflux")
        ]
        caplog.clear()
        return found

    return read


def about(policy, handle):
    base, off = shorten(handle.plan.base, 40), handle.plan.masks.count.masked
    return f"policy {policy.name!r} (sha256:{policy.digest[:12]}) on {base}, {off:,} bits off"


def test_guard_swap_and_undo_are_one_line_each(transformer, store, lines):
    handle = guard(transformer, BLADES, store=store)
    first = about(BLADES, handle)
    assert lines() == [("INFO", f"guard: {first}")]
    handle.swap(BOTH, store=store)
    assert lines() == [("INFO", f"swap: {about(BOTH, handle)}, in the place of policy 'blades-only'")]
    guard(transformer, BOTH, store=store)  # it is in force already
    handle.undo()
    assert lines() == [("INFO", f"undo: {about(BOTH, handle)}")]
    handle.undo()
    assert lines() == []


@torch.no_grad()
def test_verify_logs_a_change_of_state_once(transformer, store, lines):
    handle = guard(transformer, BLADES, store=store)
    lines()
    handle.verify()
    handle.verify(deep=True)
    assert lines() == []
    weight = transformer.context_embedder.weight
    saved = weight.clone()
    weight += 1
    handle.verify()
    handle.verify(deep=True)
    ((level, text),) = lines()
    assert level == "WARNING"
    assert text.startswith("verify: policy 'blades-only' was GUARDED and is DEGRADED; ")
    assert "\n" not in text
    weight.copy_(saved)
    handle.verify(deep=True)
    assert lines() == [("INFO", "verify: policy 'blades-only' was DEGRADED and is GUARDED")]


def test_a_pool_is_a_line_and_its_switches_are_details(transformer, store, lines):
    pool = PolicyPool(transformer, {"one": BLADES, "two": SPIRITS}, store=store)
    assert ("INFO", f"pool: 'one', 'two'; in force: {about(BLADES, pool.handle)}") in lines()
    with pool.under("two"):
        pass
    assert lines() == [("DEBUG", "switch: policy 'two' of the pool in the place of 'one'")]


@pytest.fixture
def warning_policy(tmp_path):
    path = tmp_path / "warns.yaml"
    path.write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: warns\nbudget: {max_share_masked: 0.04}\n"
        "categories:\n  weapons: {masks: [weapons]}\n  alcohol: {masks: [alcohol], action: warn}\n"
    )
    return str(path)


def levels(run):
    """Of the lines that a command printed beside its result."""
    assert run.exit_code == 0, run.output
    assert run.stdout
    return {line.partition(":")[0] for line in run.stderr.splitlines()} & {"debug", "info", "warning", "error"}


@pytest.mark.parametrize(("flags", "expected"), [((), {"warning"}), (("-q",), set()), (("--quiet",), set())])
def test_a_warning_is_printed_unless_quiet(warning_policy, tmp_path, flags, expected):
    arguments = [*flags, "bake", str(EMOJI_FLUX), str(tmp_path / "out"), "--policy", warning_policy]
    run = CliRunner().invoke(main, arguments)
    assert levels(run) == expected
    assert (WARNING in run.stderr.splitlines()) == bool(expected)


@pytest.mark.slow
def test_verbose_prints_what_is_done_to_models(warning_policy, tmp_path):
    arguments = ["-v", "demo", "--policy", warning_policy, "--images", "1", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(main, arguments)
    assert levels(run) == {"info", "warning"}
    assert any(line.startswith("info: guard: policy 'warns'") for line in run.stderr.splitlines())


def test_quiet_and_verbose_together_are_wrong_use():
    run = CliRunner().invoke(main, ["-q", "-v", "policy", "schema"])
    assert run.exit_code == 2
    assert "expected one of -q and -v, got both" in run.stderr


def test_an_error_is_printed_when_quiet(tmp_path):
    run = CliRunner().invoke(main, ["-q", "policy", "explain", str(tmp_path / "none.yaml")])
    assert run.exit_code == 3
    assert run.stderr.startswith("error: ")
