"""Exports a transformer to an ONNX file whose initializers are its parameters, under diffusers' names.

The exporter's own optimizer is off: it would fold, merge and rename weights, so that masks could not find them.
ONNX Runtime optimizes in memory when it loads the file.
"""

import importlib
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from safeflux.baking.stamp import Stamp
from safeflux.checkpoints.onnx_model import MISSING, model_bytes, read_model
from safeflux.disk.staging import check_new, staged
from safeflux.errors import ConfigError, ModelError
from safeflux.families.sites import adapter_names, find_sites, parameter_shapes
from safeflux.model.handle import GuardHandle
from safeflux.model.record import record_of
from safeflux.model.turn_lock import turns_of
from safeflux.model.weights import find_transformer, fingerprint
from safeflux.plan.resolve import Plan

try:
    importlib.import_module("onnxscript")  # which torch imports only while it exports
except ImportError as error:
    raise ConfigError(MISSING) from error

_AXES = {
    "hidden_states": ("batch", "image_tokens"),
    "encoder_hidden_states": ("batch", "text_tokens"),
    "pooled_projections": ("batch",),
    "timestep": ("batch",),
    "img_ids": ("image_tokens",),
    "txt_ids": ("text_tokens",),
    "guidance": ("batch",),
}
"""Inputs of FLUX transformers, and their axes of dynamic length."""
_LENGTHS = {"batch": 2, "image_tokens": 4, "text_tokens": 3}
"""Lengths in the traced example: all different and none 1, or the exporter would take them for fixed or equal."""


def export_onnx(model: Any, target: str | os.PathLike[str]) -> None:
    """Write a transformer as an ONNX model: a folder with `model.onnx` and, for the weights, `model.onnx.data`.

    Inputs and the output `sample` have the names of diffusers. Batch, image tokens and text tokens may have any length;
    `timestep` is in 0 to 1, as the pipelines pass it. `hidden_states`, `encoder_hidden_states` and
    `pooled_projections` have the model's dtype, all others are float32. The metadata list the policies in force.

    Args:
        model: A FLUX pipeline of diffusers, or its transformer, guarded or not; it must not be changed meanwhile.
        target: The folder to create; it gets its name once all of it is on disk.

    Raises:
        BakeError: The target already exists, or cannot be written.
        ModelError: Not a FLUX model; or its weights are not plain tensors (offloaded, quantised, sharded, wrapped by
            adapters); or its guard is not fully in force; or torch cannot export it.
    """
    transformer, folder = find_transformer(model), Path(target)
    check_new(folder)  # each model gets its own, so that data files are never mixed up
    with turns_of(transformer).drawing():
        plans = _plans_in_force(transformer)
        _check_bare(transformer)
        program = _program(transformer)
        with staged(folder, sum(parameter.nbytes for parameter in transformer.parameters())) as partial:
            partial.mkdir()
            path = partial / "model.onnx"
            program.save(path, external_data=True)
            graph_file = read_model(path)
            _forget_the_source(graph_file.graph)
            if plans:
                stamp = Stamp.of(plans, "compact" if record_of(transformer).is_final else "both")
                for key, value in stamp.metadata.items():
                    graph_file.metadata_props.add(key=key, value=value)
            path.write_bytes(model_bytes(graph_file))


def _plans_in_force(transformer: torch.nn.Module) -> tuple[Plan, ...]:
    record = record_of(transformer)
    for entry in record.entries:
        found = GuardHandle(transformer, entry.plan, entry, owns=False).verify(deep=True)
        if not found.ok:
            raise ModelError(
                f"policy {entry.plan.policy.name!r} is {found.state}, not GUARDED: {found.faults[0]}. "
                "Guard the model again, or call the handle's `refresh()`, before the export."
            )
    return record.plans


def _check_bare(transformer: torch.nn.Module) -> None:
    """Check that this is a FLUX model, and that its parameters are all that its output depends on."""
    if adapters := adapter_names(parameter_shapes(transformer)):
        raise ModelError(
            f"adapter tensor {adapters[0]!r} is on the model. Call `pipe.fuse_lora()`, `pipe.unload_lora_weights()` "
            "and the handle's `refresh()`, in this order, before the export."
        )
    find_sites(transformer)
    fingerprint(transformer)
    if "attention_mask" in inspect.signature(transformer.forward).parameters:
        raise ModelError(
            f"{type(transformer).__name__} takes an attention mask, which an ONNX model of ours has no input for. "
            "Serve it with diffusers, or bake its files: `safeflux bake`."
        )


def _program(transformer: Any) -> Any:
    inputs = _example(transformer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the exporter's own code
            return torch.onnx.export(
                transformer,
                (),
                kwargs=inputs,
                dynamo=True,
                optimize=False,
                dynamic_shapes={name: dict(enumerate(_AXES[name])) for name in inputs},
                output_names=["sample"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ModelError(f"torch cannot export this {type(transformer).__name__} to ONNX: {reason}") from error


def _example(transformer: Any) -> dict[str, torch.Tensor]:
    """Example inputs for this transformer, in shapes from its configuration."""
    config, known = transformer.config, inspect.signature(transformer.forward).parameters
    ids = (len(config.axes_dims_rope), torch.float32)
    widths = {
        "hidden_states": (config.in_channels, transformer.dtype),
        "encoder_hidden_states": (config.joint_attention_dim, transformer.dtype),
        "pooled_projections": (config.get("pooled_projection_dim"), transformer.dtype),
        "img_ids": ids,
        "txt_ids": ids,
    }
    inputs = {}
    for name in (name for name in _AXES if name in known and (name != "guidance" or config.guidance_embeds)):
        *width, dtype = widths.get(name, (torch.float32,))
        lengths = [_LENGTHS[axis] for axis in _AXES[name]]
        inputs[name] = torch.ones(*lengths, *width, dtype=dtype, device=transformer.device)
    return inputs


def _forget_the_source(graph: Any) -> None:
    """Drop the exporter's notes on Python code: they are most of the file, and contain local paths."""
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
