"""Small FLUX models in the layout of Black Forest Labs, put together by hand: what tables must find."""

from collections.abc import Callable

import torch

from safeflux.families.sites import Sites, find_sites, spans

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
    "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
    "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
}


def sites_that_agree(
    checkpoint: dict[str, torch.Tensor], convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Sites:
    """The sites of a BFL checkpoint, each of which reads the same numbers after diffusers has converted it."""
    sites = find_sites({name: tuple(tensor.shape) for name, tensor in checkpoint.items()}, "bfl")
    converted = convert(dict(checkpoint))
    assert find_sites({name: tuple(tensor.shape) for name, tensor in converted.items()}) == sites
    for site in sites.values():
        for ours, theirs in zip(spans(site), spans(site, "bfl"), strict=True):
            assert ours.axis == theirs.axis
            here = converted[ours.tensor].narrow(ours.axis, ours.start, site.shape[0])
            there = checkpoint[theirs.tensor].narrow(theirs.axis, theirs.start, site.shape[0])
            assert torch.equal(here, there), f"{site.name}: {ours} is not {theirs}"
    return sites


def to_bfl(model: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights of a FLUX.1 or Chroma transformer as one BFL file has them."""
    state, out = dict(model.state_dict()), {}

    def put(name: str, *sources: str) -> None:
        if sources[0] in state:  # Chroma has no modulations, and schnell no guidance
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
    for name in [name for name in state if name.startswith("distilled_guidance_layer.layers.")]:
        put(name.replace("linear_1", "in_layer").replace("linear_2", "out_layer"), name)
    for name in [name for name in state if name.startswith("distilled_guidance_layer.norms.")]:
        put(name.replace("weight", "scale"), name)
    for part in ("weight", "bias"):
        for theirs, ours in _OUTSIDE.items():
            put(f"{ours}.{part}", f"{theirs}.{part}")
        if f"norm_out.linear.{part}" in state:
            scale, shift = state.pop(f"norm_out.linear.{part}").chunk(2)
            out[f"{prefix}final_layer.adaLN_modulation.1.{part}"] = torch.cat([shift, scale])
    assert not state, sorted(state)
    return out


def flux2_to_bfl(model):
    """The weights of a FLUX.2 transformer as BFL has them: names by hand, checked against diffusers' own way back."""
    names = {
        "transformer_blocks": "double_blocks",
        "single_double_blocks": "single_blocks",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "proj_out": "final_layer.linear",
    }
    state, out = dict(model.state_dict()), {}
    for n in range(len(model.transformer_blocks)):
        for stream, parts in (("img", "to_{}"), ("txt", "add_{}_proj")):
            fused = [state.pop(f"transformer_blocks.{n}.attn.{parts.format(x)}.weight") for x in "qkv"]
            out[f"double_blocks.{n}.{stream}_attn.qkv.weight"] = torch.cat(fused)
    scale, shift = state.pop("norm_out.linear.weight").chunk(2)
    out["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for name, tensor in state.items():
        is_single = name.startswith("single_transformer")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        for x, long in (("q", "query"), ("k", "key")):
            name = name.replace(f"attn.norm_added_{x}.weight", f"txt_attn.norm.{long}_norm.scale")
            home = "norm" if is_single else "img_attn.norm"
            name = name.replace(f"attn.norm_{x}.weight", f"{home}.{long}_norm.scale")
        if is_single:
            name = name.replace("attn.to_out", "linear2")
        out[name] = tensor
    return out
