"""Nodes for ComfyUI that keep a safeflux policy in force on a FLUX model: put or link this folder in `custom_nodes`."""

from .nodes import SafeFluxGuard, SafeFluxReceipt, SafeFluxVerify

NODE_CLASS_MAPPINGS = {
    "SafeFluxGuard": SafeFluxGuard,
    "SafeFluxVerify": SafeFluxVerify,
    "SafeFluxReceipt": SafeFluxReceipt,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SafeFluxGuard": "SafeFlux Guard",
    "SafeFluxVerify": "SafeFlux Verify",
    "SafeFluxReceipt": "SafeFlux Receipt",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
