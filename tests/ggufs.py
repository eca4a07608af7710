"""Small FLUX models as GGUF files, written by the package gguf alone: what ours is held against."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize


def write_gguf(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    kind: GGMLQuantizationType,
    alignment: int = 32,
    special: Mapping[str, GGMLQuantizationType] = MappingProxyType({}),
) -> Path:
    """Write weights as GGUF: matrices of whole blocks in a type, other matrices in F16, the rest in F32 or BF16."""
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
        writer.add_tensor(name, quantize(tensor.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_gguf(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as the package dequantizes it."""
    return {each.name: dequantize(each.data, each.tensor_type) for each in GGUFReader(path).tensors}
