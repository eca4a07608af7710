"""Policies, mask files and headers of models spoilt at random: an answer or one of our errors, soon, in little memory.

    python -m benchmarks.fuzz --policies 300000 --masks 700000 --models 10000 --report benchmarks/reports/fuzz.json

Starts from the bundled policies, the conformance folder and small mask files; each case is one of them with a few
changes: bytes flipped, cut out, doubled, moved in from another, or words that the formats know put in. A policy that is
taken must say the same when its effective values are written down and read again. A mask file that is taken must be
the canonical bytes of what was read from it, so that no change goes unnoticed. A model whose header was spoilt and that
is baked all the same must be guarded, and differ from its source in zeros alone; one that is not leaves nothing behind.
Anything else is a defect, and its case is written out. Same seed, same cases.
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
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save

from benchmarks.guard_times import random_masks, save_policy
from safeflux.baking.bake import bake
from safeflux.baking.verify import verify_files
from safeflux.disk.atomic import write_atomically
from safeflux.errors import SafeFluxError
from safeflux.masks.encoding import decode, encode
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.plan.status import State
from safeflux.policy.load import load_policy

CONFORMANCE = Path(__file__).parent.parent / "tests" / "conformance"
SECONDS, MEGABYTES = 1.0, 200
TINY = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 1,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (2, 2, 4),
}
"""A real FLUX.1 of 100 kB."""
WORDS = (
    *b"apiVersion kind name extends categories masks action adapters budget weapons enforce audit deny".split(),
    *b"allowlist adapter_allowlist max_share_masked strict @sha256: &a *a !!python/object:os.system".split(),
    *b"... --- # \" ' { } [ ] .nan 1e999 0x10 -0 null ~ yes 2001-01-01 = -1 18446744073709551616".split(),
    *(b"<<: *a", b"? ", b"- ", b": ", b"\n  ", b"|\n", b"\t", b"%YAML 9.9\n", b"9" * 5000, b"[" * 300),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b'"dtype":"U8"', b'"data_offsets":[0,1]', b'"__metadata__"', b'"shape":[0]'),
)
Check = Callable[[bytes], str]
Change = Callable[[random.Random, Sequence[bytes]], bytes]


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
            data[at:at] = draw.choice(WORDS)
        else:
            data[at : at + length] = draw.randbytes(length)
    return bytes(data)


def respell(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A model's header with one to three entries changed, still JSON; or one that is spoilt byte by byte."""
    if draw.random() < 0.3:
        return spoil(draw, seeds)
    header = json.loads(draw.choice(seeds))
    for _ in range(draw.randint(1, 3)):
        one, other = draw.sample(sorted(set(header) - {"__metadata__"}), 2)
        entry = header[one]
        match draw.randrange(9):
            case 0:
                header[one], header[other] = header[other], header[one]
            case 1:
                header["__metadata__"] = {**header.get("__metadata__", {}), draw.choice(("note", "safeflux")): "{}"}
            case 2:
                entry["dtype"] = draw.choice(("I32", "U32", "F16", "F8_E4M3", "F64", "BOOL", "X"))
            case 3:
                entry["shape"] = draw.choice((entry["shape"][::-1], [*entry["shape"], 1], [], [0], [-1], [2**63]))
            case 4:
                shift = draw.choice((-4, 4, 2**40))
                entry["data_offsets"] = [at + shift * draw.randint(0, 1) for at in entry["data_offsets"]]
            case 5:
                del header[one]
            case 6:
                header[one + draw.choice(("x", ".scale_weight", "\0", "/../x"))] = header.pop(one)
            case 7:
                header = {
                    name if name[:2] == "__" else "model.diffusion_model." + name: e for name, e in header.items()
                }
            case _:
                header = dict(draw.sample(list(header.items()), len(header)))
    return json.dumps(header, indent=draw.choice((None, 1))).encode()


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


def check_model(folder: Path, model: FluxTransformer2DModel) -> Check:
    """Bake it; what is baked must be guarded, and differ from its source in nothing but zeros."""
    source, target, store = folder / "source.safetensors", folder / "target.safetensors", folder / "store"
    store.mkdir()
    policy, (header, body) = save_policy(model, random_masks(model), store, "weapons"), parts_of(model_bytes(model))

    def check(text: bytes) -> str:
        # one in five says a wrong size of its header, unless nothing was put in or cut out
        size = len(header) if len(text) % 5 == 0 else len(text)
        source.write_bytes(size.to_bytes(8, "little") + text + body)
        try:
            bake(source, target, policy, store=store, overwrite=True)
        except SafeFluxError as error:
            if target.exists():
                raise AssertionError("a model that was refused left a file behind") from error
            return _sort(str(error))
        try:
            _check_baked(source, target)
            if verify_files(target, policy, store=store).status.state is not State.GUARDED:
                raise AssertionError("a model that was baked is not guarded")
        finally:
            target.unlink()
        return "taken"

    return check


def _check_baked(source: Path, target: Path) -> None:
    before, after = load_file(source), load_file(target)
    if before.keys() != after.keys():
        raise AssertionError("a model that was baked has other tensors than its source")
    for name, tensor in before.items():
        old, new = tensor.contiguous().view(-1).view(torch.uint8), after[name].contiguous().view(-1).view(torch.uint8)
        if tensor.dtype != after[name].dtype or tensor.shape != after[name].shape or new[old != new].any():
            raise AssertionError(f"tensor {name!r} of a model that was baked differs in more than zeros")


def model_bytes(model: FluxTransformer2DModel) -> bytes:
    """A model as one safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, {"format": "pt"})


def parts_of(data: bytes) -> tuple[bytes, bytes]:
    """The text of a safetensors file's header, and its body."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


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


def fuzz(
    check: Check, seeds: Sequence[bytes], count: int, seed: int, cases: Path, change: Change = spoil
) -> dict[str, object]:
    """Try `count` cases; report how each ended, and write out those that ended badly."""
    draw, ends, slowest, defects = random.Random(seed), Counter[str](), 0.0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with click.progressbar(range(count), label="cases", update_min_steps=1000) as bar:
        for _ in bar:
            data, start = change(draw, seeds), time.perf_counter()
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
@click.option("--models", default=1_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--cases", type=click.Path(path_type=Path), default=Path("build/fuzz"), help="Where bad cases are kept.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(policies: int, masks: int, models: int, seed: int, cases: Path, report: Path | None) -> None:
    """Try all, print, write; exit 1 on a defect."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["policies"] = fuzz(check_policy(Path(folder)), policy_seeds(), policies, seed, cases / "policies")
    found["masks"] = fuzz(check_mask, mask_seeds(), masks, seed, cases / "masks")
    with tempfile.TemporaryDirectory() as folder:
        model = FluxTransformer2DModel(**TINY)
        seeds = [parts_of(model_bytes(model))[0]]
        found["models"] = fuzz(check_model(Path(folder), model), seeds, models, seed, cases / "models", respell)
    is_bad = False
    for name, facts in found.items():
        texts = (f"{key} {value}" for key, value in facts.items() if key != "most_common_ends")
        click.echo(f"{name}: {', '.join(texts)}")
        is_bad |= bool(facts["defects"]) or facts["slowest_seconds"] > SECONDS or facts["megabytes_grown"] > MEGABYTES
    if report:
        write_atomically(report, (json.dumps({"seed": seed, **found}, indent=1) + "\n").encode())
    if is_bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
