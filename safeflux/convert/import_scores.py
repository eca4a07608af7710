"""Masks from lists of scores, as the reference code of Minimalist Concept Erasure (arXiv 2507.13386) saves them.

Such a file is a list of vectors of floats, written by `torch.save`: one vector for each place that the reference code
hooks, in call order, without names. The file name gives the places: `ff`, the neurons of the feed-forwards of the
double blocks, in each block the image stream's before the text stream's; `norm`, the rows of the text modulations;
`attn`, heads. This is the only module that reads a pickle, and only as tensors.
"""

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safeflux.checkpoints.source import Source
from safeflux.disk.reading import read_regular
from safeflux.doctor.checks import find_known
from safeflux.doctor.known import Level
from safeflux.errors import ConfigError, MaskFileError, MaskMismatchError
from safeflux.families import MATRIX_KINDS
from safeflux.families.sites import Site
from safeflux.masks.combine import sources_digest
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.masks.packed import Keep

_KINDS = ("ff", "norm", "attn")
_MAX_BYTES = 1 << 30
"""Largest file; the float64 scores of all neurons of a FLUX.1 take a hundredth."""
_WORDS = re.compile(rf"(?<![a-z])(?:{'|'.join(_KINDS)})(?![a-z])")
_BLOCK = re.compile(r"(?:single_)?transformer_blocks\.(\d+)")


@dataclass(frozen=True)
class ScoreList:
    """One file of scores: the kind of its places, the digest of its bytes, and its content."""

    path: Path
    kind: str
    sha256: str
    scores: list[Any]


@dataclass(frozen=True)
class Imported:
    """Masks made from scores, and their metadata."""

    masks: MaskSet
    meta: MaskMeta
    skipped: tuple[Path, ...]
    """Files without an effect: scores of heads, for which masks have no site, with all heads kept."""


def import_masks(
    files: Sequence[Path],
    model: Source,
    *,
    category: str,
    concepts: Sequence[str],
    licence: str,
    base_model: str | None = None,
    threshold: float = 0.0,
) -> Imported:
    """Make masks from scores: a place is kept if its score is above the threshold.

    Args:
        files: One for each of `ff`, `norm` and `attn`, or fewer; each has its kind in its name, as a word.
        model: The model that the scores were learned for. It gives the sites, their widths and the fingerprint.
        category: What the masks erase, as policies name it.
        concepts: The concepts that the scores were learned on.
        licence: Licence of the masks.
        base_model: Id of the model; None for the name of its files.
        threshold: Scores up to it are off; the reference code uses 0.

    Raises:
        ConfigError: The threshold is not finite, or this torch cannot read a file safely.
        MaskFileError: A file is not such a list, or its name does not give its kind; or heads, or nothing, would be
            off.
        MaskMismatchError: The number or the width of the vectors does not match the model's sites.
        ModelError: The model is not a FLUX transformer.
    """
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold: expected a finite number, got {threshold}")
    check_torch(str(torch.__version__))
    sources = _read(files)
    keeps: dict[str, Keep] = {}
    for kind, source in sources.items():
        if kind == "attn":
            _check_heads(source, model.sites, threshold)
        else:
            keeps |= _keeps(source, _in_call_order(model.sites, kind), threshold)
    masks = MaskSet(keeps)
    if not masks.count.masked:
        raise MaskFileError(
            f"{', '.join(map(str, files))}: expected a score at or below {threshold:g} at a site, got none: nothing "
            "would be masked; the scores may be untrained, or choose another --threshold"
        )
    meta = MaskMeta(
        category=category,
        concepts=tuple(concepts),
        base_model=base_model or _name_of(model.path),
        family=model.sites.family,
        fingerprint=model.fingerprint,
        method=_method(sources, threshold),
        config_sha256=sources_digest(source.sha256 for source in sources.values()),
        licence=licence,
    )
    return Imported(masks, meta, tuple(source.path for kind, source in sources.items() if kind == "attn"))


def check_torch(version: str) -> None:
    """Refuse versions of torch whose reader can run code from a file, as the doctor knows them.

    Raises:
        ConfigError: The version is one of them.
    """
    if bad := [one for one in find_known({"torch": version}) if one.level is Level.BAD]:
        raise ConfigError(f"{bad[0].what}: {bad[0].reason} ({bad[0].source}); {bad[0].way_out}")


def _read(files: Sequence[Path]) -> dict[str, ScoreList]:
    """The sources by kind."""
    sources: dict[str, ScoreList] = {}
    for path in files:
        kind = _kind_of(path)
        if kind in sources:
            raise MaskFileError(f"{path}: expected one file with {kind!r} in its name, got {sources[kind].path} too")
        data = _read_scores(path)
        sources[kind] = ScoreList(path, kind, hashlib.sha256(data).hexdigest(), _load(path, data))
    return sources


def _read_scores(path: Path) -> bytes:
    """Read a file once, so that the bytes that are hashed are those that are decoded."""
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise MaskFileError(f"{path}: cannot be read ({error.strerror}); expected a list of score vectors") from error


def _kind_of(path: Path) -> str:
    found = set(_WORDS.findall(path.stem.lower()))
    if len(found) != 1:
        raise MaskFileError(
            f"{path}: expected one of the words {', '.join(_KINDS)} in the file's name, got "
            f"{' and '.join(sorted(found)) or 'none'}; rename it after the kind of its scores, such as ff.pt"
        )
    return found.pop()


def _load(path: Path, data: bytes) -> list[Any]:
    """Read a list of tensors from the bytes of a file, and nothing else."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make the reader raise anything
        raise MaskFileError(
            f"{path}: cannot be read as a list of tensors ({type(error).__name__}); expected one that torch.save "
            "wrote, without other objects"
        ) from error
    if not isinstance(found, list):
        raise MaskFileError(f"{path}: expected a list of score vectors in call order, got {type(found).__name__}")
    return found


def _in_call_order(sites: Mapping[str, Site], kind: str) -> list[Site]:
    """The sites of a kind, block by block; in a block they stay in the order of the family's table."""
    return sorted((site for site in sites.values() if site.kind == kind), key=lambda site: int(_block(site)[1]))


def _block(site: Site) -> re.Match[str]:
    match = _BLOCK.match(site.fqn)
    assert match, f"a neuron outside the blocks: {site.name}"
    return match


def _keeps(source: ScoreList, sites: Sequence[Site], threshold: float) -> dict[str, Keep]:
    """The mask of each site."""
    _check_count(source, len(sites), f"one for each {source.kind} site")
    found = {}
    for n, (scores, site) in enumerate(zip(source.scores, sites, strict=True)):
        where = f"{source.path}, vector {n} ({site.name})"
        found[site.name] = _over(where, scores, threshold, site.num_bits)
    return found


def _check_heads(source: ScoreList, sites: Mapping[str, Site], threshold: float) -> None:
    """Check that a file of heads keeps all of them, since masks have no sites for heads."""
    num_blocks = len({_block(site)[0] for site in sites.values() if site.kind not in MATRIX_KINDS})
    _check_count(source, num_blocks, "one for each block")
    for n, scores in enumerate(source.scores):
        where = f"{source.path}, vector {n}"
        if off := int((~_over(where, scores, threshold)).sum()):
            raise MaskFileError(
                f"{where}: would switch off {off} attention heads, but masks have no sites for heads; leave this file "
                "out, and measure what the others erase without it"
            )


def _check_count(source: ScoreList, expected: int, what: str) -> None:
    if len(source.scores) != expected:
        raise MaskMismatchError(
            f"{source.path}: expected {expected} vectors, {what} of the model, got {len(source.scores)}; pass the "
            "model that the scores were learned for"
        )


def _over(where: str, scores: Any, threshold: float, width: int | None = None) -> Keep:
    """Whether each score of a vector is above the threshold; bool (width,)."""
    if not isinstance(scores, torch.Tensor):
        raise MaskFileError(f"{where}: expected a tensor, got {type(scores).__name__}")
    is_dense = scores.layout == torch.strided and scores.device.type == "cpu"
    is_float = scores.is_floating_point() and scores.dtype != torch.float4_e2m1fn_x2  # two scores in each element
    if not (is_float and is_dense and scores.dim() == 1 and scores.numel()):
        raise MaskFileError(
            f"{where}: expected a vector of floats, got {scores.dtype} of shape {tuple(scores.shape)}"
            + ("" if is_dense else f" ({scores.layout}, {scores.device})")
        )
    if width is not None and scores.numel() != width:
        raise MaskMismatchError(
            f"{where}: expected {width} scores, got {scores.numel()}; pass the model that they were learned for"
        )
    values = scores.double()
    if not torch.isfinite(values).all():
        raise MaskFileError(f"{where}: expected finite scores, got NaN or infinity; its training failed")
    return (values > threshold).numpy()


def _name_of(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name


def _method(sources: Mapping[str, ScoreList], threshold: float) -> str:
    digests = ", ".join(f"{kind} sha256:{sources[kind].sha256}" for kind in _KINDS if kind in sources)
    return (
        f"imported from lists of scores ({digests}), config_sha256 over their digests: kept where score > {threshold:g}"
    )
