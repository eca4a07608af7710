"""FLUX.2 (dev, klein): its maskable sites, in diffusers' and in BFL's layout.

Neurons: every MLP is gated, silu(gate) * value, without biases. Gates and values are in one matrix, the gates first; a
neuron is a row of each and a column of the next layer. If any of the three is zero, the neuron is zero; all are
written. A single block fuses q, k, v, gates and values into one matrix, and the outputs of attention and MLP into
another. Weights: the text path, from the context embedder to the text stream's feed-forward. Image weights: the image
stream, the single blocks and the modulations, but neither the first nor the last layer.

Modulations have no neuron sites: FLUX.2 has one modulation for all blocks, so a row of it does not belong to one block.
"""

from safeflux.families.blocks import (
    BFL_DOUBLE,
    BFL_SINGLE,
    DIM,
    DOUBLE,
    IMAGE_ATTENTION,
    RENAMINGS,
    SINGLE,
    TEXT_ATTENTION,
    embedder,
    image,
    layer,
    weight,
)
from safeflux.families.table import Family, Part, Rule

SHARED_MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")


def _gated(into: str, out: str, before_in: int = 0, before_out: int = 0) -> tuple[Part, ...]:
    """A neuron's gate, value and outgoing column."""
    return (
        Part(into, before=before_in, pieces=2, piece=0),
        Part(into, before=before_in, pieces=2, piece=1),
        Part(out, axis=1, before=before_out),
    )


def _feed_forward(diffusers: str, bfl: str) -> Rule:
    """The hidden neurons of one feed-forward of a double block."""
    return Rule(
        fqn=f"{DOUBLE}.{diffusers}",
        kind="ff",
        parts={
            "diffusers": _gated(f"{DOUBLE}.{diffusers}.linear_in.weight", f"{DOUBLE}.{diffusers}.linear_out.weight"),
            "bfl": _gated(f"{BFL_DOUBLE}.{bfl}.0.weight", f"{BFL_DOUBLE}.{bfl}.2.weight"),
        },
    )


_SINGLE_MLP = Rule(
    fqn=SINGLE,
    kind="mlp",
    parts={
        "diffusers": _gated(
            f"{SINGLE}.attn.to_qkv_mlp_proj.weight", f"{SINGLE}.attn.to_out.weight", before_in=3, before_out=1
        ),
        "bfl": _gated(f"{BFL_SINGLE}.linear1.weight", f"{BFL_SINGLE}.linear2.weight", before_in=3, before_out=1),
    },
)

FLUX2 = Family(
    name="flux2",
    markers={
        "diffusers": (
            "x_embedder.weight",
            "context_embedder.weight",
            "double_stream_modulation_txt.linear.weight",
            "single_stream_modulation.linear.weight",
            "transformer_blocks.0.ff_context.linear_in.weight",
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",
            "norm_out.linear.weight",
            "proj_out.weight",
        ),
        "bfl": (
            "img_in.weight",
            "txt_in.weight",
            "double_stream_modulation_txt.lin.weight",
            "single_stream_modulation.lin.weight",
            "double_blocks.0.txt_mlp.0.weight",
            "single_blocks.0.linear1.weight",
            "final_layer.linear.weight",
        ),
    },
    dim=DIM,
    rules=(
        _feed_forward("ff", "img_mlp"),
        _feed_forward("ff_context", "txt_mlp"),
        _SINGLE_MLP,
        weight("context_embedder", Part("txt_in.weight")),
        *TEXT_ATTENTION,
        weight(f"{DOUBLE}.ff_context.linear_in", Part(f"{BFL_DOUBLE}.txt_mlp.0.weight")),
        weight(f"{DOUBLE}.ff_context.linear_out", Part(f"{BFL_DOUBLE}.txt_mlp.2.weight")),
        *IMAGE_ATTENTION,
        image(f"{DOUBLE}.ff.linear_in", f"{BFL_DOUBLE}.img_mlp.0"),
        image(f"{DOUBLE}.ff.linear_out", f"{BFL_DOUBLE}.img_mlp.2"),
        image(f"{SINGLE}.attn.to_qkv_mlp_proj", f"{BFL_SINGLE}.linear1"),
        image(f"{SINGLE}.attn.to_out", f"{BFL_SINGLE}.linear2"),
        *(image(f"{name}.linear", f"{name}.lin") for name in SHARED_MODULATIONS),
    ),
    renamings=(
        *RENAMINGS,
        *embedder("time_guidance_embed.timestep_embedder", "time_in"),
        *embedder("time_guidance_embed.guidance_embedder", "guidance_in"),
        *(each for name in SHARED_MODULATIONS for each in layer(f"{name}.linear", f"{name}.lin")),
        *layer(f"{DOUBLE}.ff.linear_in", f"{BFL_DOUBLE}.img_mlp.0"),
        *layer(f"{DOUBLE}.ff.linear_out", f"{BFL_DOUBLE}.img_mlp.2"),
        *layer(f"{DOUBLE}.ff_context.linear_in", f"{BFL_DOUBLE}.txt_mlp.0"),
        *layer(f"{DOUBLE}.ff_context.linear_out", f"{BFL_DOUBLE}.txt_mlp.2"),
        *layer(f"{SINGLE}.attn.to_qkv_mlp_proj", f"{BFL_SINGLE}.linear1"),
        *layer(f"{SINGLE}.attn.to_out", f"{BFL_SINGLE}.linear2"),
    ),
)
