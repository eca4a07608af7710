"""Chroma (Chroma1-HD, Base, Flash): its maskable sites, in diffusers' and in BFL's layout.

FLUX.1's blocks without their modulations and without the pooled prompt: one small network, the distilled guidance
layer, makes the modulation of every block from the time alone. It never sees a prompt, so no part of it belongs to a
category, and it has no sites. Neurons, text weights and image weights are otherwise those of FLUX.1.
"""

from safeflux.families.blocks import DIM, IMAGE_ATTENTION, RENAMINGS, embedder, layer, weight
from safeflux.families.flux1 import BLOCK_RENAMINGS, IMAGE_FEED_FORWARD, NEURONS, SINGLE_BLOCKS, TEXT_STREAM
from safeflux.families.table import Family, Part, Renaming

_GUIDANCE = "distilled_guidance_layer"

CHROMA = Family(
    name="chroma",
    markers={
        "diffusers": (
            "x_embedder.weight",
            "context_embedder.weight",
            f"{_GUIDANCE}.in_proj.weight",
            "transformer_blocks.0.ff_context.net.0.proj.weight",
            "single_transformer_blocks.0.proj_mlp.weight",
            "proj_out.weight",
        ),
        "bfl": (
            "img_in.weight",
            "txt_in.weight",
            f"{_GUIDANCE}.in_proj.weight",
            "double_blocks.0.txt_mlp.0.weight",
            "single_blocks.0.linear1.weight",
            "final_layer.linear.weight",
        ),
    },
    dim=DIM,
    rules=(
        *NEURONS,
        weight("context_embedder", Part("txt_in.weight")),
        *TEXT_STREAM,
        *IMAGE_ATTENTION,
        *IMAGE_FEED_FORWARD,
        *SINGLE_BLOCKS,
    ),
    renamings=(
        *RENAMINGS,
        *BLOCK_RENAMINGS,
        *layer(f"{_GUIDANCE}.in_proj", f"{_GUIDANCE}.in_proj"),
        *embedder(f"{_GUIDANCE}.layers.{{n}}", f"{_GUIDANCE}.layers.{{n}}"),
        Renaming(f"{_GUIDANCE}.norms.{{n}}.weight", f"{_GUIDANCE}.norms.{{n}}.scale"),
        *layer(f"{_GUIDANCE}.out_proj", f"{_GUIDANCE}.out_proj"),
    ),
)
