"""Training runs that take seconds: their settings, and a pack for any model."""

from pathlib import Path

SMALL = {
    "batch": "2",
    "steps": "1",
    "prompts.erase_pairs": "6",
    "prompts.preserve_pairs": "8",
    "validation_prompts": "4",
    "validate_every": "2",
    "saliency.rounds": "4",
    "saliency.warm_up": "0",
    "saliency.bits_off": "40",
    "saliency.bits_on": "10",
    "saliency.last_rounds": "0",
    "saliency.erase_batches": "1",
    "saliency.preserve_batches": "1",
    "target_found": "0",
    "call.num_inference_steps": "2",  # of validation, whose pictures are most of such a run
    "precision": "float32",  # `auto` may choose otherwise in another process, and bytes of two runs are compared
}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]
PACK = """\
apiVersion: safeflux/v1
kind: Pack
name: vehicles
anchor: a park bench
concepts:
  automobile: {words: [a car, an automobile], held_out: [a sedan]}
  bicycle: {words: [a bicycle], held_out: [a two-wheeler]}
"""
"""A category that no model with a profile has by itself."""
POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories:\n  vehicles: {masks: [vehicles]}\n"
"""It names the mask that a run on that pack writes."""
MASKS = Path(__file__).parents[2] / "policies" / "masks" / "emoji-flux"
