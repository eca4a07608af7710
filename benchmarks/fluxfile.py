"""Files with FLUX.1's own tensors, names and sizes and made-up numbers, for measuring and testing bakes.

FLUX.1-dev in the layout of Black Forest Labs has 780 tensors, 11.9 billion numbers, 23.8 GB in bf16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DIM, MLP, TEXT, POOLED, HEAD = 3072, 12288, 4096, 768, 128
BLOCK = 1 << 24
"""Bytes of random numbers that a file repeats: to draw 24 GB would take longer than all that is measured."""


def flux1_shapes(doubles: int = 19, singles: int = 38) -> dict[str, tuple[int, ...]]:
    """Name to shape, in BFL's layout, of FLUX.1-dev with so many blocks."""
    layers = {"img_in": (DIM, 64), "txt_in": (DIM, TEXT), "final_layer.linear": (64, DIM)}
    layers |= {"final_layer.adaLN_modulation.1": (2 * DIM, DIM)}
    for name, width in {"time_in": 256, "guidance_in": 256, "vector_in": POOLED}.items():
        layers |= {f"{name}.in_layer": (DIM, width), f"{name}.out_layer": (DIM, DIM)}
    norms = []
    for home in (f"double_blocks.{n}.{stream}" for n in range(doubles) for stream in ("img", "txt")):
        layers |= {f"{home}_mod.lin": (6 * DIM, DIM), f"{home}_attn.qkv": (3 * DIM, DIM)}
        layers |= {f"{home}_attn.proj": (DIM, DIM), f"{home}_mlp.0": (MLP, DIM), f"{home}_mlp.2": (DIM, MLP)}
        norms += [f"{home}_attn.norm.{name}_norm.scale" for name in ("query", "key")]
    for home in (f"single_blocks.{n}" for n in range(singles)):
        layers |= {f"{home}.linear1": (3 * DIM + MLP, DIM), f"{home}.linear2": (DIM, DIM + MLP)}
        layers |= {f"{home}.modulation.lin": (3 * DIM, DIM)}
        norms += [f"{home}.norm.{name}_norm.scale" for name in ("query", "key")]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in layers.items()} | dict.fromkeys(norms, (HEAD,))


def write_flux(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", seed: int = 0) -> None:
    """Write a safetensors file of these tensors; its numbers are finite and none is zero.

    Args:
        path: The file.
        shapes: Its tensors.
        dtype: BF16 or F8_E4M3.
        seed: Of the numbers.
    """
    size = {"BF16": 2, "F8_E4M3": 1}[dtype]
    header, offset = {}, 0
    for name, shape in sorted(shapes.items()):
        end = offset + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # below 0x3f3f bf16 is under 1, and below 0x7f float8_e4m3 is a number
    block = np.random.default_rng(seed).integers(1, 0x3F, BLOCK, dtype=np.uint8).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, BLOCK):
            file.write(block[: offset - start])
