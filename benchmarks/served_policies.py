"""`safeflux serve` with 64 requests waiting: each for one of three policies at random, compared with 64 for one.

    python -m benchmarks.served_policies --report benchmarks/reports/served_policies.json

The service is a process of its own on the embedded model, and each request has a client of its own; all ask at once,
over HTTP. Pictures a second count from then to the last answer, of both kinds in turn. Each picture has to be the one
that the service draws under that policy while nobody else asks. One thread of torch.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import click
import httpx

from benchmarks.timing import write_report
from tests.helpers.services import service

POLICIES = ("strict", "family", "moderate")
ASKED = {"prompt": "a dagger, noto style, white background", "seed": 7}
WAIT_SECONDS = 600


def draw(url: httpx.URL, policy: str, start: Barrier | None = None) -> bytes:
    """Ask for a picture, from a connection of its own that is open before the start."""
    with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        client.get("/healthz")
        if start:
            start.wait()
        answer = client.post("/draw", json={**ASKED, "policy": policy}).raise_for_status()
        return answer.content


def together(url: httpx.URL, policies: Sequence[str]) -> tuple[list[bytes], float]:
    """Ask for a picture under each, all at once; the pictures, and how many a second."""
    start = Barrier(len(policies) + 1)
    with ThreadPoolExecutor(len(policies)) as pool:
        asked = [pool.submit(draw, url, policy, start) for policy in policies]
        start.wait()
        began = time.perf_counter()
        pictures = [each.result() for each in asked]
    return pictures, len(policies) / (time.perf_counter() - began)


def measure(url: httpx.URL, requests: int, rounds: int) -> dict[str, Any]:
    """Speeds of all rounds, and how many pictures were not those of their policy."""
    expected = {policy: draw(url, policy) for policy in POLICIES}
    assert len(set(expected.values())) == len(POLICIES), "each policy has to draw a picture of its own"
    rng, speeds, wrong = random.Random(0), [], Counter[str]()
    for _ in range(rounds):
        speed = {}
        for kind, policies in (("one", ["family"] * requests), ("mixed", rng.choices(POLICIES, k=requests))):
            pictures, speed[kind] = together(url, policies)
            wrong[kind] += sum(expected[p] != picture for p, picture in zip(policies, pictures, strict=True))
        speeds.append({**speed, "ratio": speed["mixed"] / speed["one"]})
        click.echo(f"one policy {speed['one']:.2f} pictures/s, mixed {speed['mixed']:.2f}; wrong {dict(wrong)}")
    return {"speeds": speeds, "ratio": statistics.median(each["ratio"] for each in speeds), "wrong": dict(wrong)}


@click.command(help=__doc__)
@click.option("--requests", default=64, show_default=True, help="Requests that wait at once.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each kind.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(requests: int, rounds: int, report: Path | None) -> None:
    """Serve, ask, print, write."""
    load = os.getloadavg()
    policies = [part for policy in POLICIES for part in ("--policy", policy)]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "safeflux", "serve", *policies, "--queue", str(requests)]
        with service(command, Path(folder) / "log") as (client, _):
            found = measure(client.base_url, requests, rounds)
    write_report(report, **found, requests=requests, rounds=rounds, load_before=load, load_after=os.getloadavg())


if __name__ == "__main__":
    main()
