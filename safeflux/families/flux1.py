"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Depth, Canny): its maskable sites, in diffusers' and in BFL's layout.

Neurons: GELU(0) = 0, so a zero row with its bias and a zero column have the same effect; both are written. A zero row
of a text modulation means shift 0, factor 1 or gate 0. Weights: the text path, from the context and the pooled
embedder to the text stream's feed-forward. Image weights: the image stream, the single blocks and all modulations, but
neither the first nor the last layer, which every picture passes through. BFL fuses q, k and v into one matrix (thirds
of its rows) and q, k, v and the MLP of a single block into another.
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


def _feed_forward(diffusers: str, bfl: str) -> Rule:
    """The hidden neurons of one feed-forward of a double block."""
    return Rule(
        fqn=f"{DOUBLE}.{diffusers}",
        kind="ff",
        parts={
            "diffusers": (
                Part(f"{DOUBLE}.{diffusers}.net.0.proj.weight"),
                Part(f"{DOUBLE}.{diffusers}.net.0.proj.bias"),
                Part(f"{DOUBLE}.{diffusers}.net.2.weight", axis=1),
            ),
            "bfl": (
                Part(f"{BFL_DOUBLE}.{bfl}.0.weight"),
                Part(f"{BFL_DOUBLE}.{bfl}.0.bias"),
                Part(f"{BFL_DOUBLE}.{bfl}.2.weight", axis=1),
            ),
        },
    )


_TEXT_MODULATION = Rule(
    fqn=f"{DOUBLE}.norm1_context",
    kind="norm",
    parts={
        "diffusers": (Part(f"{DOUBLE}.norm1_context.linear.weight"), Part(f"{DOUBLE}.norm1_context.linear.bias")),
        "bfl": (Part(f"{BFL_DOUBLE}.txt_mod.lin.weight"), Part(f"{BFL_DOUBLE}.txt_mod.lin.bias")),
    },
)

_SINGLE_MLP = Rule(
    fqn=SINGLE,
    kind="mlp",
    parts={
        "diffusers": (
            Part(f"{SINGLE}.proj_mlp.weight"),
            Part(f"{SINGLE}.proj_mlp.bias"),
            Part(f"{SINGLE}.proj_out.weight", axis=1, before=1),
        ),
        "bfl": (
            Part(f"{BFL_SINGLE}.linear1.weight", before=3),
            Part(f"{BFL_SINGLE}.linear1.bias", before=3),
            Part(f"{BFL_SINGLE}.linear2.weight", axis=1, before=1),
        ),
    },
)

NEURONS = (_feed_forward("ff", "img_mlp"), _feed_forward("ff_context", "txt_mlp"), _SINGLE_MLP)

TEXT_STREAM = (
    *TEXT_ATTENTION,
    weight(f"{DOUBLE}.ff_context.net.0.proj", Part(f"{BFL_DOUBLE}.txt_mlp.0.weight")),
    weight(f"{DOUBLE}.ff_context.net.2", Part(f"{BFL_DOUBLE}.txt_mlp.2.weight")),
)

IMAGE_FEED_FORWARD = (
    image(f"{DOUBLE}.ff.net.0.proj", f"{BFL_DOUBLE}.img_mlp.0"),
    image(f"{DOUBLE}.ff.net.2", f"{BFL_DOUBLE}.img_mlp.2"),
)

SINGLE_BLOCKS = (
    *(image(f"{SINGLE}.attn.{name}", f"{BFL_SINGLE}.linear1", n, 1) for n, name in enumerate(("to_q", "to_k", "to_v"))),
    image(f"{SINGLE}.proj_mlp", f"{BFL_SINGLE}.linear1", 3),
    image(f"{SINGLE}.proj_out", f"{BFL_SINGLE}.linear2"),
)

BLOCK_RENAMINGS = (
    *layer(f"{DOUBLE}.ff.net.0.proj", f"{BFL_DOUBLE}.img_mlp.0"),
    *layer(f"{DOUBLE}.ff.net.2", f"{BFL_DOUBLE}.img_mlp.2"),
    *layer(f"{DOUBLE}.ff_context.net.0.proj", f"{BFL_DOUBLE}.txt_mlp.0"),
    *layer(f"{DOUBLE}.ff_context.net.2", f"{BFL_DOUBLE}.txt_mlp.2"),
    *layer(f"{SINGLE}.attn.to_q", f"{BFL_SINGLE}.linear1", 0, 1),
    *layer(f"{SINGLE}.attn.to_k", f"{BFL_SINGLE}.linear1", 1, 2),
    *layer(f"{SINGLE}.attn.to_v", f"{BFL_SINGLE}.linear1", 2, 3),
    *layer(f"{SINGLE}.proj_mlp", f"{BFL_SINGLE}.linear1", 3),
    *layer(f"{SINGLE}.proj_out", f"{BFL_SINGLE}.linear2"),
)

FLUX1 = Family(
    name="flux1",
    markers={
        "diffusers": (
            "x_embedder.weight",
            "context_embedder.weight",
            "transformer_blocks.0.norm1_context.linear.weight",
            "transformer_blocks.0.ff_context.net.0.proj.weight",
            "single_transformer_blocks.0.proj_mlp.weight",
            "norm_out.linear.weight",
            "proj_out.weight",
        ),
        "bfl": (
            "img_in.weight",
            "txt_in.weight",
            "double_blocks.0.txt_mod.lin.weight",
            "single_blocks.0.linear1.weight",
            "final_layer.linear.weight",
        ),
    },
    dim=DIM,
    rules=(
        *NEURONS,
        _TEXT_MODULATION,
        weight("context_embedder", Part("txt_in.weight")),
        weight("time_text_embed.text_embedder.linear_1", Part("vector_in.in_layer.weight")),
        weight("time_text_embed.text_embedder.linear_2", Part("vector_in.out_layer.weight")),
        *TEXT_STREAM,
        *IMAGE_ATTENTION,
        image(f"{DOUBLE}.norm1.linear", f"{BFL_DOUBLE}.img_mod.lin"),
        image(f"{DOUBLE}.norm1_context.linear", f"{BFL_DOUBLE}.txt_mod.lin"),
        *IMAGE_FEED_FORWARD,
        image(f"{SINGLE}.norm.linear", f"{BFL_SINGLE}.modulation.lin"),
        *SINGLE_BLOCKS,
    ),
    renamings=(
        *RENAMINGS,
        *embedder("time_text_embed.timestep_embedder", "time_in"),
        *embedder("time_text_embed.guidance_embedder", "guidance_in"),
        *embedder("time_text_embed.text_embedder", "vector_in"),
        *layer(f"{DOUBLE}.norm1.linear", f"{BFL_DOUBLE}.img_mod.lin"),
        *layer(f"{DOUBLE}.norm1_context.linear", f"{BFL_DOUBLE}.txt_mod.lin"),
        *layer(f"{SINGLE}.norm.linear", f"{BFL_SINGLE}.modulation.lin"),
        *BLOCK_RENAMINGS,
    ),
)
