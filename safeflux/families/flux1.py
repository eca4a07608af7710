"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Depth, Canny): its maskable sites, in diffusers' and in BFL's layout.

Neurons: GELU(0) = 0, so a zero row with its bias and a zero column are the same thing; both are written. A zero row
of a text modulation means shift 0, factor 1 or gate 0. Weights: the text path, from the context and the pooled
embedder to the text stream's feed-forward. BFL fuses q, k and v into one matrix (thirds of its rows) and q, k, v and
the MLP of a single block into another.
"""

from safeflux.families.table import Family, Part, Rule

_D = "transformer_blocks.{n}"
_S = "single_transformer_blocks.{n}"
_BD = "double_blocks.{n}"
_BS = "single_blocks.{n}"


def _feed_forward(diffusers: str, bfl: str) -> Rule:
    """The hidden neurons of one feed-forward of a double block."""
    return Rule(
        fqn=f"{_D}.{diffusers}",
        kind="ff",
        parts={
            "diffusers": (
                Part(f"{_D}.{diffusers}.net.0.proj.weight"),
                Part(f"{_D}.{diffusers}.net.0.proj.bias"),
                Part(f"{_D}.{diffusers}.net.2.weight", axis=1),
            ),
            "bfl": (
                Part(f"{_BD}.{bfl}.0.weight"),
                Part(f"{_BD}.{bfl}.0.bias"),
                Part(f"{_BD}.{bfl}.2.weight", axis=1),
            ),
        },
    )


def _weight(fqn: str, bfl: Part) -> Rule:
    """Every element of one matrix of the text path."""
    return Rule(fqn=fqn, kind="weight", parts={"diffusers": (Part(f"{fqn}.weight"),), "bfl": (bfl,)})


_TEXT_MODULATION = Rule(
    fqn=f"{_D}.norm1_context",
    kind="norm",
    parts={
        "diffusers": (Part(f"{_D}.norm1_context.linear.weight"), Part(f"{_D}.norm1_context.linear.bias")),
        "bfl": (Part(f"{_BD}.txt_mod.lin.weight"), Part(f"{_BD}.txt_mod.lin.bias")),
    },
)

_SINGLE_MLP = Rule(
    fqn=_S,
    kind="mlp",
    parts={
        "diffusers": (
            Part(f"{_S}.proj_mlp.weight"),
            Part(f"{_S}.proj_mlp.bias"),
            Part(f"{_S}.proj_out.weight", axis=1, before=1),
        ),
        "bfl": (
            Part(f"{_BS}.linear1.weight", before=3),
            Part(f"{_BS}.linear1.bias", before=3),
            Part(f"{_BS}.linear2.weight", axis=1, before=1),
        ),
    },
)

_QKV = f"{_BD}.txt_attn.qkv.weight"

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
    dim={"diffusers": "x_embedder.weight", "bfl": "img_in.weight"},
    rules=(
        _feed_forward("ff", "img_mlp"),
        _feed_forward("ff_context", "txt_mlp"),
        _SINGLE_MLP,
        _TEXT_MODULATION,
        _weight("context_embedder", Part("txt_in.weight")),
        _weight("time_text_embed.text_embedder.linear_1", Part("vector_in.in_layer.weight")),
        _weight("time_text_embed.text_embedder.linear_2", Part("vector_in.out_layer.weight")),
        _weight(f"{_D}.attn.add_q_proj", Part(_QKV, after=2)),
        _weight(f"{_D}.attn.add_k_proj", Part(_QKV, before=1, after=1)),
        _weight(f"{_D}.attn.add_v_proj", Part(_QKV, before=2)),
        _weight(f"{_D}.ff_context.net.0.proj", Part(f"{_BD}.txt_mlp.0.weight")),
        _weight(f"{_D}.ff_context.net.2", Part(f"{_BD}.txt_mlp.2.weight")),
    ),
)
