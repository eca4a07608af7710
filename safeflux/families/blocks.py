"""What the tables of FLUX.1 and FLUX.2 have in common: how blocks are called, and the text stream's attention.

BFL fuses q, k and v of a stream into one matrix, thirds of its rows.
"""

from collections.abc import Mapping

from safeflux.families.table import Layout, Part, Rule

DOUBLE = "transformer_blocks.{n}"
SINGLE = "single_transformer_blocks.{n}"
BFL_DOUBLE = "double_blocks.{n}"
BFL_SINGLE = "single_blocks.{n}"

DIM: Mapping[Layout, str] = {"diffusers": "x_embedder.weight", "bfl": "img_in.weight"}
"""The matrix whose number of rows is the hidden width."""


def weight(fqn: str, bfl: Part) -> Rule:
    """Every element of one matrix."""
    return Rule(fqn=fqn, kind="weight", parts={"diffusers": (Part(f"{fqn}.weight"),), "bfl": (bfl,)})


_QKV = f"{BFL_DOUBLE}.txt_attn.qkv.weight"

TEXT_ATTENTION = (
    weight(f"{DOUBLE}.attn.add_q_proj", Part(_QKV, after=2)),
    weight(f"{DOUBLE}.attn.add_k_proj", Part(_QKV, before=1, after=1)),
    weight(f"{DOUBLE}.attn.add_v_proj", Part(_QKV, before=2)),
)
"""The text stream's q, k and v."""
