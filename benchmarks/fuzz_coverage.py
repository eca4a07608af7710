"""Policies or mask files changed by libFuzzer, towards lines of ours that no case has reached yet.

    pip install atheris
    python -m benchmarks.fuzz_coverage policies --minutes 5
    python -m benchmarks.fuzz_coverage masks --minutes 5

Starts from the conformance folder and the seeds of `benchmarks.fuzz`, and asks what that asks: an answer or one of our
errors, and what is taken must say the same when it is written down and read again. What reached new lines is kept in
the corpus, from which the next run goes on. Stops at the first defect, writes its case beside the corpus, and exits
with libFuzzer's own status.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import atheris
import click

with atheris.instrument_imports(include=["safeflux", "yaml"]):
    from benchmarks.fuzz import CONFORMANCE, SECONDS, WORDS, Check, check_mask, check_policy, mask_seeds, policy_seeds

MAX_BYTES = 16_384
LONGEST_WORD = 64
"""libFuzzer takes no longer ones."""
SLOWER = 10
"""How much longer a case may take than in `benchmarks.fuzz`: counting lines takes time."""


def write_seeds(corpus: Path, seeds: Iterable[bytes]) -> None:
    """Put seeds into a corpus, under names by which libFuzzer knows them."""
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def write_words(path: Path) -> None:
    """The words that the formats know, as a dictionary of libFuzzer."""
    short = [word for word in WORDS if len(word) <= LONGEST_WORD]
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in short))


def run(check: Check, corpus: Path, minutes: float, seed: int) -> None:
    """Fuzz until the time is up or a defect is found. Never returns: libFuzzer ends the process."""
    write_words(corpus.with_suffix(".dict"))
    options = {
        "max_total_time": max(1, round(60 * minutes)),
        "max_len": MAX_BYTES,
        "timeout": round(SECONDS * SLOWER),
        "seed": seed,
        "dict": corpus.with_suffix(".dict"),
        "artifact_prefix": f"{corpus}.defect-",
        "print_final_stats": 1,
    }

    def check_one(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)], check_one)
    atheris.Fuzz()


@click.command(help=__doc__)
@click.argument("what", type=click.Choice(["policies", "masks"]))
@click.option("--minutes", default=5.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--corpus", type=click.Path(path_type=Path), default=Path("build/fuzz_coverage"), show_default=True)
def main(what: str, minutes: float, seed: int, corpus: Path) -> None:
    """Fuzz one of the two readers."""
    if what == "masks":
        conformance = (path.read_bytes() for path in sorted((CONFORMANCE / "masks").glob("*.safetensors")))
        write_seeds(corpus / what, [*mask_seeds(), *conformance])
        run(check_mask, corpus / what, minutes, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(corpus / what, policy_seeds())
        run(check_policy(Path(folder)), corpus / what, minutes, seed)


if __name__ == "__main__":
    main()
