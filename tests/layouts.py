"""A small FLUX.1 in the layout of Black Forest Labs, put together by hand: what tables must find."""

import torch

_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
}


def to_bfl(model: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights of a FLUX.1 transformer as one BFL file has them."""
    state, out = dict(model.state_dict()), {}

    def put(name: str, *sources: str) -> None:
        out[f"{prefix}{name}"] = torch.cat([state.pop(source) for source in sources])

    for n in {int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks.")}:
        home, block = f"double_blocks.{n}", f"transformer_blocks.{n}"
        for part in ("weight", "bias"):
            put(f"{home}.img_attn.qkv.{part}", *(f"{block}.attn.to_{x}.{part}" for x in "qkv"))
            put(f"{home}.txt_attn.qkv.{part}", *(f"{block}.attn.add_{x}_proj.{part}" for x in "qkv"))
            for theirs, ours in _DOUBLE.items():
                put(f"{home}.{ours}.{part}", f"{block}.{theirs}.{part}")
        for x, name in (("q", "query"), ("k", "key")):
            put(f"{home}.img_attn.norm.{name}_norm.scale", f"{block}.attn.norm_{x}.weight")
            put(f"{home}.txt_attn.norm.{name}_norm.scale", f"{block}.attn.norm_added_{x}.weight")
    for n in {int(name.split(".")[1]) for name in state if name.startswith("single_transformer_blocks.")}:
        home, block = f"single_blocks.{n}", f"single_transformer_blocks.{n}"
        for part in ("weight", "bias"):
            qkv = [f"{block}.attn.to_{x}.{part}" for x in "qkv"]
            put(f"{home}.linear1.{part}", *qkv, f"{block}.proj_mlp.{part}")
            put(f"{home}.linear2.{part}", f"{block}.proj_out.{part}")
            put(f"{home}.modulation.lin.{part}", f"{block}.norm.linear.{part}")
        put(f"{home}.norm.query_norm.scale", f"{block}.attn.norm_q.weight")
        put(f"{home}.norm.key_norm.scale", f"{block}.attn.norm_k.weight")
    for part in ("weight", "bias"):
        for theirs, ours in _OUTSIDE.items():
            if f"{theirs}.{part}" in state:
                put(f"{ours}.{part}", f"{theirs}.{part}")
        scale, shift = state.pop(f"norm_out.linear.{part}").chunk(2)
        out[f"{prefix}final_layer.adaLN_modulation.1.{part}"] = torch.cat([shift, scale])
    assert not state, sorted(state)
    return out
