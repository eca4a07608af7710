"""Small FLUX models as GGUF files, written by the package gguf alone: what ours is held against."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
READ_ONLY = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"),
    *("IQ3_S", "IQ4_NL", "IQ4_XS"),
)
"""Packed types that the package can write and read, and those that it can only read."""
READABLE = [GGMLQuantizationType[name] for name in (*WRITTEN, *READ_ONLY)]


def write_gguf(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    kind: GGMLQuantizationType,
    alignment: int = 32,
    special: Mapping[str, GGMLQuantizationType] = MappingProxyType({}),
) -> Path:
    """Write weights as GGUF: matrices of whole blocks in a type, other matrices in F16, the rest in F32 or BF16.

    What the package cannot quantise gets blocks of random bytes.
    """
    writer = GGUFWriter(path, "flux")
    writer.add_custom_alignment(alignment)
    writer.add_description("a small FLUX")
    writer.add_array("letters", ["one", "two"])
    writer.add_array("numbers", [1, 2, 3])
    for name, tensor in weights.items():
        own = GGMLQuantizationType.F16 if tensor.dim() == 2 else GGMLQuantizationType.F32
        if "norm" in name:
            own = GGMLQuantizationType.BF16
        if tensor.dim() == 2 and tensor.shape[1] % GGML_QUANT_SIZES[kind][0] == 0:
            own = kind
        own = special.get(name, own)
        writer.add_tensor(name, _packed(tensor.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _packed(values: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> npt.NDArray[np.generic]:
    return random_rows(kind, values.shape, seed=values.size) if kind.name in READ_ONLY else quantize(values, kind)


def random_rows(kind: GGMLQuantizationType, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.uint8]:
    """Rows of a packed type, of random bytes in blocks whose numbers are finite."""
    block, nbytes = GGML_QUANT_SIZES[kind]
    count = shape[0] * shape[1] // block
    drawn = np.random.default_rng(seed).integers(0, 256, (2 * count + 64, nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(dequantize(drawn, kind)).all(axis=1)
    return drawn[finite][:count].reshape(shape[0], -1)


def read_gguf(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as the package dequantizes it."""
    return {each.name: dequantize(each.data, each.tensor_type) for each in GGUFReader(path).tensors}
