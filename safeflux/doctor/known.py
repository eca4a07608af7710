"""Known bad versions and limits of the packages that safeflux builds on.

Data only: each fact has a source that can be looked up: a CVE, a thread on GitHub, or a test in safeflux's repository.
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
    """Something known of a package that is installed.

    Attributes:
        package: Its name on PyPI.
        level: How much it matters.
        reason: What happens.
        way_out: What to do.
        source: A CVE, a thread on GitHub, or a file of our tests.
        affected: The versions it holds for, as a version specifier such as `<2.10`; all of them if empty.
        without: Only where this other package is not installed.
        unless: Not for versions with this text in them.
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
        "a crafted file can run code when torch.load(weights_only=True) reads it, as `safeflux mask import` does",
        "pip install -U 'torch>=2.10'",
        "CVE-2026-24747",
        affected="<2.10",
    ),
    Fact(
        "torch",
        Level.BAD,
        "torch.load(weights_only=True) runs code that a file brings along",
        "pip install -U 'torch>=2.10'",
        "CVE-2025-32434",
        affected="<2.6",
    ),
    Fact(
        "torchao",
        Level.LIMIT,
        "float8 weights with a scale for each row: a row that is all zero becomes NaN, and masks make such rows (seen "
        "with 0.18)",
        "use int8, or leave layers with masked rows out; `verify` detects it",
        "pytorch/ao#4713, safeflux's tests/model/test_forward_values.py",
    ),
    Fact(
        "optimum-quanto",
        Level.LIMIT,
        "int4 weights do not hold an exact zero, so a masked weight is small and not off",
        "use int8 or float8",
        "huggingface/optimum-quanto#234",
    ),
    Fact(
        "nunchaku",
        Level.BAD,
        "the package of this name on PyPI is another one, and holds nothing of the SVDQuant engine",
        "pip uninstall nunchaku, and take a wheel from the releases of nunchux-ai/nunchaku (1.0.2+torch2.7 for one)",
        "nunchux-ai/ComfyUI-nunchaku#5",
        unless="+torch",
    ),
    Fact(
        "model-signing",
        Level.BAD,
        "it cannot be imported without pyopenssl, which it does not require (1.1.1)",
        "pip install 'safeflux[sign]'",
        "safeflux's tests/evidence/test_signatures.py",
        without="pyopenssl",
    ),
    Fact(
        "diffusers",
        Level.LIMIT,
        "group offload to a folder that was used before takes the old files, weights that are not masked",
        "give each guarded model an empty folder; `verify` detects it",
        "safeflux's tests/model/test_forward_values.py",
    ),
)
