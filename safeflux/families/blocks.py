"""The common part of the tables of all families: names of blocks, attention, and the layers around them.

BFL fuses q, k and v of a stream into one matrix, thirds of its rows.
"""

from collections.abc import Mapping

from safeflux.families.table import Layout, MatrixKind, Part, Renaming, Rule

DOUBLE = "transformer_blocks.{n}"
SINGLE = "single_transformer_blocks.{n}"
BFL_DOUBLE = "double_blocks.{n}"
BFL_SINGLE = "single_blocks.{n}"

DIM: Mapping[Layout, str] = {"diffusers": "x_embedder.weight", "bfl": "img_in.weight"}
"""The matrix whose number of rows is the hidden width."""


def weight(fqn: str, bfl: Part) -> Rule:
    """Every element of one matrix of the text path."""
    return _elements(fqn, "weight", bfl)


def image(fqn: str, bfl: str, before: int = 0, length: int | None = None) -> Rule:
    """Every element of one matrix of the image stream, of a single block, or of a modulation.

    Args:
        fqn: The layer in diffusers.
        bfl: The layer in BFL's layout.
        before: Its first row there, in units of the hidden width.
        length: The number of rows, in the same unit; None for all that follow.
    """
    return _elements(fqn, "image", Part(f"{bfl}.weight", before=before, length=length))


def _elements(fqn: str, kind: MatrixKind, bfl: Part) -> Rule:
    return Rule(fqn=fqn, kind=kind, parts={"diffusers": (Part(f"{fqn}.weight"),), "bfl": (bfl,)})


_QKV = f"{BFL_DOUBLE}.txt_attn.qkv.weight"

TEXT_ATTENTION = (
    weight(f"{DOUBLE}.attn.add_q_proj", Part(_QKV, after=2)),
    weight(f"{DOUBLE}.attn.add_k_proj", Part(_QKV, before=1, after=1)),
    weight(f"{DOUBLE}.attn.add_v_proj", Part(_QKV, before=2)),
)
"""The text stream's q, k and v."""

IMAGE_ATTENTION = (
    *(
        image(f"{DOUBLE}.attn.{name}", f"{BFL_DOUBLE}.img_attn.qkv", n, 1)
        for n, name in enumerate(("to_q", "to_k", "to_v"))
    ),
    image(f"{DOUBLE}.attn.to_out.0", f"{BFL_DOUBLE}.img_attn.proj"),
)
"""The image stream's q, k, v and output."""


def layer(diffusers: str, bfl: str, begin: int = 0, end: int | None = None) -> tuple[Renaming, ...]:
    """Weight and bias of a linear layer; the bias is ignored if the model has none."""
    return tuple(Renaming(f"{diffusers}.{p}", f"{bfl}.{p}", begin, end) for p in ("weight", "bias"))


SPELLINGS: Mapping[str, str] = {"_norm.weight": "_norm.scale"}
"""Suffixes of BFL names in some files, and their form in the tables."""


def norm(diffusers: str, bfl: str) -> Renaming:
    """The scale of a norm of q or k."""
    return Renaming(f"{diffusers}.weight", f"{bfl}_norm.scale")


def _attention(bfl: str, q: str, k: str, v: str, norm_q: str, norm_k: str, out: str) -> tuple[Renaming, ...]:
    """The attention of one stream of a double block."""
    home = f"{BFL_DOUBLE}.{bfl}"
    return (
        *(each for n, name in enumerate((q, k, v)) for each in layer(f"{DOUBLE}.attn.{name}", f"{home}.qkv", n, n + 1)),
        norm(f"{DOUBLE}.attn.{norm_q}", f"{home}.norm.query"),
        norm(f"{DOUBLE}.attn.{norm_k}", f"{home}.norm.key"),
        *layer(f"{DOUBLE}.attn.{out}", f"{home}.proj"),
    )


def embedder(diffusers: str, bfl: str) -> tuple[Renaming, ...]:
    """Two layers that embed the time, the guidance or the pooled prompt."""
    return layer(f"{diffusers}.linear_1", f"{bfl}.in_layer") + layer(f"{diffusers}.linear_2", f"{bfl}.out_layer")


RENAMINGS = (
    *layer("x_embedder", "img_in"),
    *layer("context_embedder", "txt_in"),
    *_attention("img_attn", "to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0"),
    *_attention("txt_attn", "add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out"),
    norm(f"{SINGLE}.attn.norm_q", f"{BFL_SINGLE}.norm.query"),
    norm(f"{SINGLE}.attn.norm_k", f"{BFL_SINGLE}.norm.key"),
    *(
        Renaming(f"norm_out.linear.{p}", f"final_layer.adaLN_modulation.1.{p}", is_swapped=True)
        for p in ("weight", "bias")
    ),
    *layer("proj_out", "final_layer.linear"),
)
"""Tensors with the same name in both families."""
