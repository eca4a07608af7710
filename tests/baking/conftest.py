"""The folder of a pipeline, to be baked."""

import pytest

NAME = "diffusion_pytorch_model"
"""How diffusers names the files of weights."""


@pytest.fixture
def folder(pipe, tmp_path):
    """A real pipeline, as diffusers saves it, without text encoders."""
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
