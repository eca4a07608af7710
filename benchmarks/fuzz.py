"""Policies and mask files spoilt at random: each must give an answer or one of our errors, soon and in little memory.

    python -m benchmarks.fuzz --policies 300000 --masks 700000 --report benchmarks/reports/fuzz.json

Starts from the bundled policies, the conformance folder and small mask files; each case is one of them with a few
changes: bytes flipped, cut out, doubled, moved in from another, or words that the formats know put in. A policy that is
taken must say the same when its effective values are written down and read again. A mask file that is taken must be
the canonical bytes of what was read from it, so that no change goes unnoticed. Anything else is a defect, and its case
is written out. Same seed, same cases.
"""

from __future__ import annotations

import json
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import click
import torch
import yaml

from safeflux.atomic import write_atomically
from safeflux.errors import SafeFluxError
from safeflux.maskfile import MaskMeta, decode, encode
from safeflux.masks import MaskSet
from safeflux.policy import load_policy

CONFORMANCE = Path(__file__).parent.parent / "tests" / "conformance"
SECONDS, MEGABYTES = 1.0, 200
_WORDS = (
    *b"apiVersion kind name extends categories masks action adapters budget weapons enforce audit deny".split(),
    *b"allowlist adapter_allowlist max_share_masked strict @sha256: &a *a !!python/object:os.system".split(),
    *b"... --- # \" ' { } [ ] .nan 1e999 0x10 -0 null ~ yes 2001-01-01 = -1 18446744073709551616".split(),
    *(b"<<: *a", b"? ", b"- ", b": ", b"\n  ", b"|\n", b"\t", b"%YAML 9.9\n", b"9" * 5000, b"[" * 300),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b'"dtype":"U8"', b'"data_offsets":[0,1]', b'"__metadata__"', b'"shape":[0]'),
)
Check = Callable[[bytes], str]


def spoil(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with one to six changes."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, 6)):
        at, length = draw.randint(0, len(data)), draw.choice((1, 1, 1, 4, 16, 200))
        kind = draw.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * draw.choice((1, 1, 2, 50))
        elif kind == 3:
            other = draw.choice(seeds)
            start = draw.randint(0, len(other))
            data[at:at] = other[start : start + length]
        elif kind == 4:
            data[at:at] = draw.choice(_WORDS)
        else:
            data[at : at + length] = draw.randbytes(length)
    return bytes(data)


def check_policy(folder: Path) -> Check:
    """Load it as a file; what is taken is written down and read again."""
    path, again = folder / "policy.yaml", folder / "again.yaml"

    def check(data: bytes) -> str:
        path.write_bytes(data)
        try:
            policy = load_policy(path)
        except SafeFluxError as error:
            return _sort(str(error))
        written = {"apiVersion": "safeflux/v1", "kind": "Policy", **json.loads(policy.model_dump_json())}
        if not written["adapter_allowlist"]:
            del written["adapter_allowlist"]
        again.write_text(yaml.safe_dump(written), encoding="utf-8")
        if load_policy(again).digest != policy.digest:
            raise AssertionError("a policy that was taken is another one when it is read again")
        return "taken"

    return check


def check_mask(data: bytes) -> str:
    """Decode it; what is taken must be canonical."""
    try:
        masks, meta = decode(data, "mask")
    except SafeFluxError as error:
        return _sort(str(error))
    if encode(masks, meta) != data:
        raise AssertionError("bytes that were taken are not those that the masks are written as")
    return "taken"


def _sort(message: str) -> str:
    """Which error it is, without names and numbers."""
    first = message.splitlines()[1 if message.startswith("the policy has") else 0]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+|[^ -~]", "*", first)[:80]


def mask_seeds() -> list[bytes]:
    """Small mask files of both encodings."""
    draw = torch.Generator().manual_seed(0)
    meta = MaskMeta(
        "weapons", ("dagger",), "tiny", "flux1", "sf1-x", "by hand", "0" * 64, "Apache-2.0", {"n": [1, 2.5]}
    )
    dense = {"transformer_blocks.0.ff:ff": torch.rand(40, generator=draw) > 0.3}
    sparse = {"context_embedder:weight": torch.rand(16, 24, generator=draw) > 0.01}
    sets = (dense, sparse, dense | sparse)
    return [encode(MaskSet(masks), replace(meta, category=f"c{k}")) for k, masks in enumerate(sets)]


def policy_seeds() -> list[bytes]:
    """The bundled policies and the conformance folder."""
    bundled = [entry.read_bytes() for entry in files("safeflux.policies").iterdir() if entry.name.endswith(".yaml")]
    return bundled + [path.read_bytes() for path in sorted((CONFORMANCE / "policies").glob("*.yaml"))]


def fuzz(check: Check, seeds: Sequence[bytes], count: int, seed: int, cases: Path) -> dict[str, object]:
    """Try `count` cases; tell how each ended, and write out what ended badly."""
    draw, ends, slowest, defects = random.Random(seed), Counter[str](), 0.0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with click.progressbar(range(count), label="cases", update_min_steps=1000) as bar:
        for _ in bar:
            data, start = spoil(draw, seeds), time.perf_counter()
            try:
                ends[check(data)] += 1
            except Exception as error:
                defects.append(f"{type(error).__name__}: {error}"[:300])
                cases.mkdir(parents=True, exist_ok=True)
                (cases / f"{len(defects)}").write_bytes(data)
            slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "cases": count,
        "taken": ends["taken"],
        "kinds_of_errors": len(ends) - bool(ends["taken"]),
        "defects": defects,
        "slowest_seconds": slowest,
        "megabytes_grown": grown,
        "minutes": (time.monotonic() - began) / 60,
        "most_common_ends": dict(ends.most_common(30)),
    }


@click.command(help=__doc__)
@click.option("--policies", default=20_000, show_default=True)
@click.option("--masks", default=20_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--cases", type=click.Path(path_type=Path), default=Path("build/fuzz"), help="Where bad cases are kept.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(policies: int, masks: int, seed: int, cases: Path, report: Path | None) -> None:
    """Try both, print, write; exit 1 on a defect."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["policies"] = fuzz(check_policy(Path(folder)), policy_seeds(), policies, seed, cases / "policies")
    found["masks"] = fuzz(check_mask, mask_seeds(), masks, seed, cases / "masks")
    is_bad = False
    for name, told in found.items():
        facts = (f"{key} {value}" for key, value in told.items() if key != "most_common_ends")
        click.echo(f"{name}: {', '.join(facts)}")
        is_bad |= bool(told["defects"]) or told["slowest_seconds"] > SECONDS or told["megabytes_grown"] > MEGABYTES
    if report:
        write_atomically(report, (json.dumps({"seed": seed, **found}, indent=1) + "\n").encode())
    if is_bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
