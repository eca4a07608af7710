"""Bakes that are killed, and bakes to one target: `python -m benchmarks.bake_kills`.

Each round bakes the embedded model's transformer to a file in a process of its own, which is killed (SIGKILL) at a
random moment; the file is then what it was, or the whole new one. Then several processes bake to one file at once: each
writes the whole file or is refused, and none clears what another one makes.
"""

import hashlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from benchmarks.timing import milliseconds, write_report
from safeflux.baking.bake import bake
from safeflux.errors import BakeError
from safeflux.reference.model import EMOJI_FLUX

SOURCE = EMOJI_FLUX / "transformer" / "diffusion_pytorch_model.safetensors"
POLICIES = ("strict", "moderate")
"""What is baked over what, so that the old file and the new one differ."""
_DONE, _REFUSED, _FAILED = 0, 3, 4
REFUSALS = ("another process is writing it", "was created by another process meanwhile", "already exists")
"""What the errors say that one of several bakes to one target may end in; tests of these errors match them."""


def digest(path: Path) -> str | None:
    """The sha256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def forked(call: Callable[[], object]) -> int:
    """Run a bake in a process of its own, and return the process's number."""
    child = os.fork()
    if child:
        return child
    status = _FAILED
    try:
        call()
        status = _DONE
    except BakeError as error:
        status = _REFUSED if any(words in str(error) for words in REFUSALS) else _FAILED
        if status == _FAILED:
            click.echo(f"unexpected: {error}", err=True)
    finally:
        os._exit(status)


def killed(folder: Path, rounds: int, draw: random.Random, whole: dict[str, str], usual: float) -> Counter[str]:
    """Kill bakes at random moments of about the time that one takes; count what came of each."""
    target, found = folder / "killed.safetensors", Counter[str]()
    for n in range(rounds):
        before, policy = digest(target), POLICIES[n % 2]
        if n % 10 == 0:  # now and then there is no file of that name
            target.unlink(missing_ok=True)
            before = None
        child = forked(partial(bake, SOURCE, target, policy, overwrite=True))
        time.sleep(draw.uniform(0, 1.2 * usual) / 1000)
        os.kill(child, signal.SIGKILL)
        was_killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        after = digest(target)
        found["rounds"] += 1
        found["killed before the end"] += was_killed
        found["left a hidden folder"] += any(folder.glob(".*"))
        found["old file kept"] += after == before
        found["half-written"] += after not in (before, whole[policy])
    bake(SOURCE, target, POLICIES[0], overwrite=True)
    found["hidden folders after the next whole bake"] = len(list(folder.glob(".*")))
    return found


def together(folder: Path, rounds: int, processes: int, draw: random.Random, whole: dict[str, str]) -> Counter[str]:
    """Bake to one target in several processes at once, sometimes after one was killed there."""
    target, found = folder / "together.safetensors", Counter[str]()
    for n in range(rounds):
        overwrite = n % 2 == 0
        target.unlink(missing_ok=True)
        if n % 3 == 0:
            child = forked(partial(bake, SOURCE, target, POLICIES[0], overwrite=True, progress=kill_self))
            os.waitpid(child, 0)
        children = []
        for _ in range(processes):
            children.append(forked(partial(bake, SOURCE, target, POLICIES[0], overwrite=overwrite)))
            time.sleep(draw.choice((0, 0, 0.002, 0.02)))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        found["rounds"] += 1
        found["wrote the file"] += codes.count(_DONE)
        found["refused"] += codes.count(_REFUSED)
        found["others' work cleared"] += len(codes) - codes.count(_DONE) - codes.count(_REFUSED)
        found["half-written"] += digest(target) != whole[POLICIES[0]]
        found["nobody wrote"] += _DONE not in codes
        found["left a hidden folder"] += any(folder.glob(".*"))
    return found


def kill_self(*_: object) -> None:
    """Kill the process that bakes."""
    os.kill(os.getpid(), signal.SIGKILL)


@click.command(help=__doc__)
@click.option("--kills", default=300, show_default=True)
@click.option("--rounds", default=60, show_default=True, help="Of several bakes to one target.")
@click.option("--processes", default=3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--report", type=click.Path(path_type=Path))
def main(kills: int, rounds: int, processes: int, seed: int, report: Path | None) -> None:
    """Run both, print what came of it, and exit with 1 if a file was half-written or another's work cleared."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), {}
        for policy in POLICIES:
            bake(SOURCE, folder / "whole.safetensors", policy, overwrite=True)
            whole[policy] = str(digest(folder / "whole.safetensors"))
        usual = milliseconds(partial(bake, SOURCE, folder / "whole.safetensors", "strict", overwrite=True))
        one = killed(folder, kills, draw, whole, usual)
        several = together(folder, rounds, processes, draw, whole)
    settings = {"seed": seed, "processes": processes, "source_bytes": SOURCE.stat().st_size, "bake_ms": round(usual)}
    click.echo(f"killed: {dict(one)}\ntogether: {dict(several)}")
    write_report(report, settings=settings, killed=dict(one), together=dict(several))
    bad = one["half-written"] + several["half-written"] + several["others' work cleared"]
    bad += one["hidden folders after the next whole bake"]
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
