"""One policy a request: what a switch costs, and what mixed requests cost against requests for one policy.

    python -m benchmarks.policy_pool --report benchmarks/reports/policy_pool.json

`switch`: entering `pool.under` for another policy than the one in force, nobody drawing, against plain writes of the
same elements, `tensor[index] = values` with index and values at hand; each run times both, one after the other. On
emoji-flux with its bundled policies, and on tensors of FLUX.1's true shapes in bf16: neurons with the shares of the
published reference masks, and 10 million single weights. `share`: the same switch in units of one picture of 4 steps on
emoji-flux. `mixed`: pictures a second with 64 requests waiting, each for one of three policies at random, against 64
for one policy, one picture at a time, in turn. `memory`: what a pool of 8 policies keeps. Medians; one thread of torch.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.guard_scale import build, index_of, neurons, weights
from benchmarks.guard_times import save_policy
from benchmarks.timing import milliseconds, write_report
from safeflux.families.sites import Site, find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.pool.pool import PolicyPool
from safeflux.model.writes import Write, as_bits
from safeflux.policy.load import Policy
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline

BUNDLED = ("strict", "family", "moderate")
PROMPT = "a dog, fluent style, white background"


def enter(pool: PolicyPool, name: str) -> None:
    """Let a request in for a policy, and out again."""
    with pool.under(name):
        pass


def plain(off: Sequence[Write], on: Sequence[Write]) -> Callable[[], None]:
    """Plain writes of the elements that a switch writes, one for each tensor and direction."""
    todo = [(as_bits(w.tensor), index_of(w.elements, w.tensor), 0) for w in off]
    todo += [(as_bits(w.tensor), index_of(w.elements, w.tensor), w.saved) for w in on]

    def write() -> None:
        for bits, index, values in todo:
            bits[index] = values

    return write


def together(writes: Sequence[Write]) -> list[Write]:
    """The same elements, with one write for each tensor, as somebody would who knew this switch alone."""
    by_tensor: dict[int, list[Write]] = {}
    for write in writes:
        by_tensor.setdefault(id(write.tensor), []).append(write)
    return [first.joined(others) if others else first for first, *others in by_tensor.values()]


def switches(pool: PolicyPool, times: int) -> dict[str, Any]:
    """Time every switch between two of the pool's policies, and plain writes of the same."""
    pairs = list(itertools.permutations(pool.policies, 2))
    taken: dict[str, list[float]] = {"switch": [], "plain writes": [], "ratio": []}
    written = []
    for old, new in pairs * times:
        enter(pool, old)
        change = pool._member.members.layers.change(old, new)
        one = milliseconds(partial(enter, pool, new))
        # the bits that are there already: writing takes as long, and nothing changes
        off, on = together(change.off), together(change.on)
        other = milliseconds(plain(off, on))
        pool._member.members.layers.count(len(off) + len(on))  # or these writes would be taken for someone else's
        taken["switch"].append(one)
        taken["plain writes"].append(other)
        taken["ratio"].append(one / other)
        written.append(sum(write.saved.nbytes for write in (*off, *on)))
    return {
        "milliseconds": {name: statistics.median(values) for name, values in taken.items() if name != "ratio"},
        "ratio": statistics.median(taken["ratio"]),
        "all": taken,
        "bytes_written": statistics.median(written),
        "bytes_kept": pool.num_bytes_kept,
    }


def pool_of_random(doubles: int, off: Callable[[Site], float], count: int, folder: Path) -> PolicyPool:
    """Policies of random masks on FLUX.1's true shapes, each with bits of its own off."""
    model = build(doubles, one_image_stream=True)
    policies: dict[str, Policy] = {}
    for number in range(count):
        rng = torch.Generator().manual_seed(number)
        sites = [site for site in find_sites(model).values() if off(site)]
        masks = MaskSet({site.name: torch.rand(site.shape, generator=rng) >= off(site) for site in sites})
        policies[f"p{number}"] = save_policy(model, masks, folder, f"p{number}")
    return PolicyPool(model, policies, store=folder)


def pictures_a_second(pipe: Any, pool: PolicyPool, names: Sequence[str], steps: int) -> float:
    """Draw one picture for each request, all waiting from the start."""
    go = threading.Event()

    def serve(number: int, name: str) -> None:
        go.wait()
        with pool.under(name):
            draw(pipe, [PROMPT], number, num_inference_steps=steps)

    threads = [threading.Thread(target=serve, args=each) for each in enumerate(names)]
    for thread in threads:
        thread.start()
    with pool.under(names[0]):
        go.set()
        while pool.num_waiting < len(names):
            time.sleep(0.01)
        began = time.perf_counter()
    for thread in threads:
        thread.join()
    return len(names) / (time.perf_counter() - began)


def on_emoji_flux(times: int, rounds: int) -> Iterator[tuple[str, Any]]:
    """What is measured on the embedded model."""
    pipe = load_pipeline()
    with PolicyPool(pipe, {name: name for name in BUNDLED}) as pool:
        found = switches(pool, times)
        yield "emoji-flux", found
        picture = statistics.median(
            milliseconds(partial(draw, pipe, [PROMPT], 0, num_inference_steps=4)) for _ in range(20)
        )
        yield "share of a picture", found["milliseconds"]["switch"] / picture
        rng, speeds = random.Random(0), []
        for _ in range(rounds):
            one = pictures_a_second(pipe, pool, ["family"] * 64, 4)
            mixed = pictures_a_second(pipe, pool, rng.choices(BUNDLED, k=64), 4)
            speeds.append((one, mixed, mixed / one))
        yield "pictures a second", {"one, mixed, ratio": speeds, "ratio": statistics.median(r for _, _, r in speeds)}


def at_true_widths(times: int, doubles: int) -> Iterator[tuple[str, Any]]:
    """What is measured on FLUX.1's shapes."""
    for name, off, blocks in (("neurons", neurons, 1), ("weights", weights, doubles)):
        with tempfile.TemporaryDirectory() as folder:
            with pool_of_random(blocks, off, 2, Path(folder)) as pool:
                yield name, switches(pool, times)
            if name == "neurons":
                with pool_of_random(blocks, off, 8, Path(folder)) as pool:
                    layers = pool._member.members.layers.all
                    shared = sum(layer.num_bytes for layer in layers if len(layer.policies) == 8)
                    yield "bytes kept for 8 policies", {"differences": pool.num_bytes_kept, "in all of them": shared}


@click.command(help=__doc__)
@click.option("--times", default=7, show_default=True, help="Switches of each kind.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of 64 requests of each kind.")
@click.option("--doubles", default=19, show_default=True, help="Double blocks of the model for weights.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, rounds: int, doubles: int, report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    load = os.getloadavg()
    found: dict[str, Any] = {}
    for name, value in itertools.chain(on_emoji_flux(times, rounds), at_true_widths(times, doubles)):
        found[name] = value
        shown = {key: each for key, each in value.items() if key != "all"} if isinstance(value, dict) else value
        click.echo(f"{name}: {shown}")
    write_report(report, **found, times=times, rounds=rounds, load_before=load, load_after=os.getloadavg())


if __name__ == "__main__":
    main()
