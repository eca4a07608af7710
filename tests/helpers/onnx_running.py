"""ONNX models run by ONNX Runtime, and what is in their files."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from safeflux.baking.stamp import KEY
from safeflux.reference.onnx_session import providers
from tests.helpers.models import SMALL

FEWEST = SMALL | {"num_layers": 1, "num_single_layers": 1}
LENGTHS = ((2, 4, 3), (1, 9, 7), (3, 1, 16), (1, 1, 1))
"""Batch, image tokens, text tokens."""


def inputs_of(model, lengths=(2, 4, 3)) -> dict[str, torch.Tensor]:
    (batch, image, text), config = lengths, model.config
    draw, ids = torch.Generator().manual_seed(1), len(config.axes_dims_rope)
    values = {
        "hidden_states": torch.randn(batch, image, config.in_channels, generator=draw),
        "encoder_hidden_states": torch.randn(batch, text, config.joint_attention_dim, generator=draw),
        "timestep": torch.rand(batch, generator=draw),
        "img_ids": torch.randint(0, 9, (image, ids), generator=draw).float(),
        "txt_ids": torch.randint(0, 9, (text, ids), generator=draw).float(),
    }
    if "pooled_projection_dim" in config:
        values["pooled_projections"] = torch.randn(batch, config.pooled_projection_dim, generator=draw)
    if config.guidance_embeds:
        values["guidance"] = torch.rand(batch, generator=draw)
    return values


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=providers())


def run(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    return session(path).run(["sample"], {name: value.numpy() for name, value in inputs.items()})[0]


def assert_runs_like(path: Path, model, lengths=LENGTHS) -> None:
    """ONNX Runtime's answers are torch's, up to rounding in float32."""
    running = session(path)
    for each in lengths:
        inputs = inputs_of(model, each)
        with torch.no_grad():
            expected = model(**inputs, return_dict=False)[0].numpy()
        (found,) = running.run(["sample"], {name: value.numpy() for name, value in inputs.items()})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), each


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def facts(path: Path) -> dict:
    return json.loads(session(path).get_modelmeta().custom_metadata_map[KEY])


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
