"""Known bad versions and limits of the packages that safeflux builds on.

Data only. Each fact has a source: a CVE, a thread on GitHub, or a test in safeflux's repository.
"""

from dataclasses import dataclass
from enum import StrEnum

PACKAGES = (
    "safeflux",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "peft",
    "torchao",
    "bitsandbytes",
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "model-signing",
    "pyopenssl",
    "nunchaku",
    "optimum-quanto",
)
"""Packages whose versions are reported, installed or not."""


class Level(StrEnum):
    """How much a finding matters."""

    BAD = "bad"
    """Something does not work, or is not safe."""
    LIMIT = "limit"
    """Something works within limits."""


@dataclass(frozen=True)
class Fact:
    """A known fact about a package.

    Attributes:
        package: Its name on PyPI.
        level: How much it matters.
        reason: What happens.
        way_out: What to do.
        source: A CVE, a thread on GitHub, or one of our tests.
        affected: The affected versions, as a specifier such as `<2.10`; all of them if empty.
        without: Only if this other package is not installed.
        unless: Not for versions that contain this string.
    """

    package: str
    level: Level
    reason: str
    way_out: str
    source: str
    affected: str = ""
    without: str = ""
    unless: str = ""


KNOWN = (
    Fact(
        "torch",
        Level.BAD,
        "a crafted file can run code when torch.load(weights_only=True) reads it, which `safeflux mask import` does",
        "pip install -U 'torch>=2.10'",
        "CVE-2026-24747",
        affected="<2.10",
    ),
    Fact(
        "torch",
        Level.BAD,
        "torch.load(weights_only=True) can run code from a file",
        "pip install -U 'torch>=2.10'",
        "CVE-2025-32434",
        affected="<2.6",
    ),
    Fact(
        "torchao",
        Level.LIMIT,
        "float8 weights with a scale per row: a row of zeros becomes NaN, and masks create such rows (seen with 0.18)",
        "use int8, or leave layers with masked rows out; `verify` detects it",
        "pytorch/ao#4713, safeflux's tests/model/test_forward_values.py",
    ),
    Fact(
        "optimum-quanto",
        Level.LIMIT,
        "int4 weights cannot be exactly zero, so a masked weight is small but not off",
        "use int8 or float8",
        "huggingface/optimum-quanto#234",
    ),
    Fact(
        "nunchaku",
        Level.BAD,
        "the package of this name on PyPI is a different one, without the SVDQuant engine",
        "pip uninstall nunchaku, and install a wheel from the releases of nunchux-ai/nunchaku, such as 1.0.2+torch2.7",
        "nunchux-ai/ComfyUI-nunchaku#5",
        unless="+torch",
    ),
    Fact(
        "model-signing",
        Level.BAD,
        "it cannot be imported without pyopenssl, which is not among its requirements (1.1.1)",
        "pip install 'safeflux[sign]'",
        "safeflux's tests/evidence/test_signatures.py",
        without="pyopenssl",
    ),
    Fact(
        "diffusers",
        Level.LIMIT,
        "group offload to a folder that was used before reads the old files, with weights that are not masked",
        "give each guarded model an empty folder; `verify` detects it",
        "safeflux's tests/model/test_forward_values.py",
    ),
)
