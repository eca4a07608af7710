"""The values that forward multiplies with, wherever they are held now. Reads only.

A parameter of a served model is often not what is read: sequential offload leaves it empty and keeps the values in a
map, group offload to disk leaves garbage in it and keeps the values in a file, with streams it loads a copy of its own,
a quantiser puts a packed tensor in its place, FSDP a shard of it, and `fuse_qkv_projections` reads rows of a copy.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from safeflux.families.sites import base_names
from safeflux.model.watch.parts import named_parameters, named_parts, note_children
from safeflux.model.weights import PLAIN, fused_rows, is_frozen, offload_copies, offload_files, offload_groups


class UnreadableError(Exception):
    """The values of a weight cannot be determined; the text says why, to follow its name."""


class Values:
    """Reads a transformer's weights by name."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        """Find out where they are held at this moment.

        Raises:
            ModelError: cache-dit draws with the model, and has done so since its parts were first looked at.
        """
        note_children(transformer)
        self.modules = named_parts(transformer)
        """The transformer and all its parts, by name."""
        self.are_sharded = any(_is_of(kind, "torch.distributed.fsdp") for kind in set(map(type, self.modules.values())))
        """Whether FSDP puts a shard or the gathered whole in a parameter's place, now this and now that."""
        self.parameters = named_parameters(transformer)
        """Those of adapters too."""
        parameters = base_names(self.parameters)
        self._fused = {name: (rows, parameters[rows.tensor]) for name, rows in fused_rows(self.modules).items()}
        copies = {rows.tensor for rows, _ in self._fused.values()}
        self.tensors = {name: tensor for name, tensor in parameters.items() if name not in copies}
        """Every weight by name, as `named_weights` returns them."""
        self.buffers = dict(_buffers(self.modules))
        """Every buffer by name, such as the statistics of a norm; complex ones as pairs of numbers."""
        groups = list(offload_groups(self.modules))
        self._files = offload_files(groups)
        self._copies = offload_copies(groups)
        self._maps = _offload_maps(self.modules)

    @property
    def files(self) -> set[str]:
        """Paths of the files that values are offloaded to."""
        return {path for path, _ in self._files.values()}

    def sources(self) -> list[torch.Tensor]:
        """Every ordinary tensor in memory whose values forward reads, those inside of packed ones too; each once."""
        found = []
        for name, tensor in (*self.tensors.items(), *self.buffers.items()):
            held = self._in_memory(name, tensor)
            if held is not None:
                found += _inside(held)
        for _, tensor in self._fused.values():
            found += _inside(tensor)
        return list({id(tensor): tensor for tensor in found if not tensor.is_meta}.values())

    def packing(self, name: str) -> set[torch.dtype] | None:
        """Types of the tensors inside of a packed weight; None for an ordinary one."""
        held = self._in_memory(name, self.tensors[name]) if name in self.tensors else None
        return None if held is None or type(held) in PLAIN else {part.dtype for part in _inside(held)}

    def holders(self) -> dict[str, int]:
        """How many parameters are held in which way: `memory`, `disk`, `offload map`, or a packed tensor's type."""
        return dict(Counter(self._holder(name, tensor) for name, tensor in self.tensors.items()))

    def _holder(self, name: str, tensor: torch.Tensor) -> str:
        if id(tensor) in self._files:
            return "disk"
        if tensor.is_meta:
            return "offload map" if name in self._maps else "nowhere"
        return "memory" if type(tensor) in PLAIN else type(tensor).__name__

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return the values of a weight or buffer, as an ordinary tensor; itself where it holds them.

        Where processes share the work (FSDP) all of them must call it: it gathers the shards.

        Raises:
            UnreadableError: They cannot be read, or have another shape.
        """
        if fused := self._fused.get(name):
            rows, tensor = fused
            values = self._read(rows.tensor, tensor)[rows.start : rows.stop]
        elif (own := self.tensors.get(name, self.buffers.get(name))) is None:
            raise UnreadableError("is gone: its layer was replaced")
        else:
            values = self._read(name, own)
        if values.shape != shape:
            raise UnreadableError(f"has the shape {tuple(values.shape)} now: it was resized")
        return values

    def _read(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if place := self._files.get(id(tensor)):
            return _from_file(*place)
        if (held := self._in_memory(name, tensor)) is not None:
            return held if name in self.buffers else _plain(held)
        lost = "a compiled graph took them and discarded these" if is_frozen(tensor) else "they were offloaded"
        raise UnreadableError(f"holds no values now: {lost}")

    def are_in(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the values lie in the memory of a tensor, so that forward reads what is written to it."""
        now = None if name in self._fused else self.tensors.get(name)
        held = None if now is None or id(now) in self._files else self._in_memory(name, now)
        if held is None or type(held) not in PLAIN:
            return False
        return held.device == tensor.device and held.data_ptr() == tensor.data_ptr()

    def _in_memory(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """What forward loads the values from, or packed ones; None where they are not in memory."""
        if tensor.is_meta:
            return self._maps.get(name, {}).get(name.rpartition(".")[2])
        return self._copies.get(id(tensor), tensor)


def _buffers(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in modules.items():
        for leaf, buffer in module._buffers.items():
            if buffer is not None and buffer.numel():
                name = f"{path}.{leaf}".lstrip(".").replace(".base_layer.", ".")
                yield name, torch.view_as_real(buffer) if buffer.is_complex() else buffer


def _is_of(kind: type, package: str) -> bool:
    """Whether a class or one above it is from a package, without importing it: not every build of torch has these."""
    return any(base.__module__.startswith(package) for base in kind.__mro__)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a packed or sharded tensor; an ordinary one as it is."""
    if type(tensor) in PLAIN and tensor.is_floating_point():
        return tensor.resolve_neg()
    library = type(tensor).__module__.partition(".")[0]
    holder: Any = tensor
    if _is_of(type(tensor), "torch.distributed.tensor"):
        values = holder.full_tensor()
    elif library == "torchao" or _is_of(type(tensor), "optimum.quanto"):
        values = holder.dequantize()
    elif library == "bitsandbytes" and getattr(holder, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        values = dequantize_4bit(holder.data, holder.quant_state)
    else:
        raise UnreadableError(f"is a {type(tensor).__name__} of {tensor.dtype} now, which cannot be read here")
    return values + 0.0  # a packed zero may come back as -0.0, whose bits are not zero


def _inside(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The ordinary tensors that a packed one is made of; an ordinary one itself."""
    if type(tensor) in PLAIN or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [inner for part in parts if isinstance(part, torch.Tensor) for inner in _inside(part)]


def _offload_maps(parts: Mapping[str, torch.nn.Module]) -> dict[str, Mapping[str, torch.Tensor]]:
    """For each parameter that accelerate keeps elsewhere: what its hook takes the values from."""
    found = {}
    for path, module in parts.items():
        weights = getattr(vars(module).get("_hf_hook"), "weights_map", None)
        if weights is not None:
            for leaf in (*module._parameters, *module._buffers):
                found[f"{path}.{leaf}".replace(".base_layer.", ".")] = weights
    return found


def _from_file(path: str, key: str) -> torch.Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise UnreadableError(f"is offloaded to {path}, which cannot be read: {error}") from error
