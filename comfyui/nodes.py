"""The three nodes. Names of methods and constants in capital letters are the engine's."""

import json
import os
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher

from safeflux import AuditLog, ModelError, State, Status, TensorPlan, load_policy, plan_tensors

from . import folders
from .guards import guards_of, put_in_force
from .looks import base_tensors, check_adapters, receipt, status

_LOG = "safeflux-audit.jsonl"
folders.register()


class SafeFluxGuard:
    """Puts a policy in force on a model, between its loader and the sampler; LoRA nodes may come before or after."""

    CATEGORY = "safeflux"
    DESCRIPTION = "Switches off what a policy names, in this model and in all that later nodes make of it."
    FUNCTION = "guard"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Offer the policies and stores there are."""
        return {
            "required": {
                "model": ("MODEL",),
                "policy": (folders.policies(), {"tooltip": "A bundled policy, or a YAML file in models/safeflux."}),
                "store": (list(folders.stores()), {"tooltip": "Where the masks are that the policy names."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, policy: str, store: str, **_: Any) -> str:
        """Run again when the policy, one of its parents or a mask file was changed."""
        return folders.state(policy, store)

    def guard(self, model: ModelPatcher, policy: str, store: str) -> tuple[ModelPatcher]:
        """Return a guarded clone of the model; the model itself and its weights stay as they are.

        Raises:
            SafeFluxError: The policy cannot be put in force on this model; the message says why and what to do.
        """
        effective, where = load_policy(folders.policy_file(policy)), folders.stores()[store]
        check_adapters(effective, model)
        plan = plan_tensors(base_tensors(model), effective, store=where, standing=guards_of(model))
        return (put_in_force(model, plan),)


class SafeFluxVerify:
    """Reads what the model will draw with, and stops the workflow where a policy is not in force."""

    CATEGORY = "safeflux"
    DESCRIPTION = (
        "Reads every masked weight as the sampler will. Put it right before the sampler, behind all other nodes."
    )
    FUNCTION = "verify"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "status")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Ask for what to do when the policy is not in force."""
        return {"required": {"model": ("MODEL",), "if_not_guarded": (["stop", "go on"],)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Look each time: what was true for the last picture need not be for the next."""
        return float("nan")

    def verify(self, model: ModelPatcher, if_not_guarded: str) -> tuple[ModelPatcher, str]:
        """Return the model, and what was found.

        Raises:
            ModelError: The policy is not in force, and the node is to stop then.
        """
        found = [each for _, each in _looked_at(model)]
        if if_not_guarded == "stop":
            for each in found:
                if each.state is not State.GUARDED:
                    raise ModelError(f"policy {each.policy!r} is {each.state}: {'; '.join(each.faults[:3])}")
        return model, "\n".join(map(repr, found))


class SafeFluxReceipt:
    """Writes down what is in force: a line in the audit log of the output folder for each policy."""

    CATEGORY = "safeflux"
    DESCRIPTION = f"Appends a receipt to {_LOG} in the output folder, and returns it as JSON."
    FUNCTION = "write"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("receipt",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Ask for nothing but the model."""
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Write one for each run."""
        return float("nan")

    def write(self, model: ModelPatcher) -> dict[str, Any]:
        """Append the receipts, and show them.

        Raises:
            ModelError: There is no guard on the model.
            AuditError: The log cannot be written to, or was edited; nothing was appended.
        """
        receipts = [receipt(model, plan, found) for plan, found in _looked_at(model)]
        output = folder_paths.get_output_directory()
        os.makedirs(output, exist_ok=True)
        log = AuditLog(os.path.join(output, _LOG))
        for each in receipts:
            log.append("guard", each)
        text = json.dumps(receipts[0] if len(receipts) == 1 else receipts, indent=2)
        return {"ui": {"text": [text]}, "result": (text,)}


def _looked_at(model: ModelPatcher) -> list[tuple[TensorPlan, Status]]:
    """Each plan in force on a model, with its status."""
    plans = guards_of(model)
    if not plans:
        raise ModelError(
            "this model is UNGUARDED: no SafeFlux Guard is between its loader and this node, or a node in between made "
            "another model of it"
        )
    return [(plan, status(model, plan)) for plan in plans]
