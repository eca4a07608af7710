"""Every bundled profile from a pack to a page, by the commands: train, eval and preview with a zero-shot detector.

    python -m benchmarks.profiles --report benchmarks/reports/profiles.json

Models are tiny and random, of each profile's own class, and so is the detector: the figures mean nothing, and what
counts is that each command ends well and leaves what it promises. Some minutes.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from click.testing import CliRunner

from benchmarks.timing import write_report
from safeflux.cli import main as safeflux
from safeflux.profiles.load import bundled_profiles
from safeflux.reference import NAME
from tests.helpers.runs import PACK, POLICY, SETTINGS
from tests.helpers.tiny import save_tiny
from tests.helpers.zero_shot import save_clip

SMALLER = [*SETTINGS, "saliency.rounds=2", "height=32", "width=32", "dtype=float32", "max_sequence_length=128"]
CALL = {"height": 32, "width": 32, "num_inference_steps": 1, "max_sequence_length": 64}


def through(name: str, folder: Path) -> dict[str, Any]:
    """Train, measure and preview one profile; what is there afterwards."""
    model, clip, pack, policy = (
        save_tiny(folder / "model", name),
        folder / "clip",
        folder / "v.yaml",
        folder / "own.yaml",
    )
    save_clip(clip)
    pack.write_text(PACK)
    policy.write_text(POLICY)
    same = ["--model", str(model), "--pack", str(pack), "--detector", f"zero-shot:{clip}"]
    area = {"max_area": 32 * 32} if "kontext" in name else {}
    call = [part for key, value in {**CALL, **area}.items() for part in ("--call", f"{key}={value}")]
    own = [*same, "--policy", str(policy), "--store", str(folder / "run"), *call]
    settings = [part for setting in (*SMALLER, "call.num_inference_steps=1") for part in ("--set", setting)]
    began = time.monotonic()
    trained = _run("train", *same, "--out", str(folder / "run"), *settings, "--json")
    measured = _run("eval", *own, "--images", "2", "--kept", "4", "--out", str(folder / "eval"), "--json")
    shown = _run("preview", *own, "--images", "2", "--out", str(folder / "preview"), "--json")
    return {
        "validated": "validation" in trained["validation"]["vehicles"],
        "curves": (folder / "run" / "curves.json").is_file(),
        "pictures": len(list((folder / "run" / "pictures").iterdir())),
        "bits_off": trained["masked"]["vehicles"],
        "rates": len(measured["figures"]["targets"]["vehicles"]),
        "sections": len(shown["sections"]),
        "page_bytes": Path(shown["page"]).stat().st_size,
        "state": shown["receipt"]["state"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _run(*arguments: str) -> Any:
    done = CliRunner().invoke(safeflux, arguments, catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(f"safeflux {' '.join(arguments)}: exit code {done.exit_code}\n{done.output}")
    return json.loads(done.stdout)


@click.command(help=__doc__)
@click.option("--report", type=click.Path(path_type=Path))
def main(report: Path | None) -> None:
    """Run, print, write."""
    rows = {}
    for name in bundled_profiles():
        if name != NAME:
            with TemporaryDirectory() as folder:
                rows[name] = through(name, Path(folder))
            click.echo(f"{name}: {rows[name]}")
    write_report(report, profiles=rows)


if __name__ == "__main__":
    main()
