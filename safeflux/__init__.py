"""Content safety that lives in the weights of a FLUX model.

A policy names content categories; each maps to trained binary masks; the masks are composed by AND and written into a
loaded model in place. Nothing else stays on the model: no hook, no wrapper, no second model.

    import safeflux
    handle = safeflux.guard(pipe, policy="strict")    # a diffusers pipeline or its transformer
    handle.verify()                                   # reads the tensors that forward reads
    handle.undo()                                     # every bit as it was
    safeflux.bake("flux", "guarded", policy="strict") # the same in files, for stacks that load files

`__all__` is the whole public API; everything else may change. Importing safeflux imports no torch: a name's module is
loaded when the name is first used. The packages, in the order in which they may import one another: `disk`,
`families`, `policy`, `reference`; `evidence`, `detectors`; `masks`; `plan`, `checkpoints`, `doctor`; `model`, `baking`;
`convert`, `evaluation`, `demo`, `serve`; `trainer`; `cli`. docs/architecture.md says what each is for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safeflux._version import __version__ as __version__

if TYPE_CHECKING:
    from safeflux.baking.bake import Baked, bake, check_bake
    from safeflux.baking.readback import FileStatus
    from safeflux.baking.verify import verify_files
    from safeflux.convert.load_compact import load_compact
    from safeflux.convert.onnx_export import export_onnx
    from safeflux.convert.tensor_plan import PackedTensor, TensorPlan, plan_tensors
    from safeflux.detectors.base import Detector, Wanted
    from safeflux.detectors.calibration import Calibration, calibrate
    from safeflux.detectors.specs import open_detector
    from safeflux.errors import (
        ApplyError,
        AuditError,
        BakeError,
        ConfigError,
        MaskFileError,
        MaskMismatchError,
        ModelError,
        PolicyError,
        SafeFluxError,
        SignatureError,
        StoreError,
        TrainError,
    )
    from safeflux.evidence.audit import AuditLog, verify_log
    from safeflux.evidence.envelope import check_statement, sign_statement
    from safeflux.families.sites import Site, Sites, find_sites
    from safeflux.masks.file import load_masks, save_masks
    from safeflux.masks.mask_set import MaskSet, compose
    from safeflux.masks.meta import MaskMeta
    from safeflux.masks.store import Store, open_store
    from safeflux.model.apply import apply_masks_
    from safeflux.model.compact import Compacted, compact_
    from safeflux.model.guard import guard
    from safeflux.model.handle import GuardHandle
    from safeflux.model.planning import make_plan
    from safeflux.model.pool.pool import PolicyPool
    from safeflux.model.verify import Verification
    from safeflux.plan.oscal import make_assessment
    from safeflux.plan.resolve import Plan
    from safeflux.plan.statement import Predicate, make_statement
    from safeflux.plan.status import State, Status
    from safeflux.policy.load import Policy, bundled_policies, load_policy
    from safeflux.rates import Rate
    from safeflux.reference.measure import draw
    from safeflux.reference.model import EMOJI_FLUX, EMOJI_FLUX_CALL, load_pipeline
    from safeflux.serve.engine import PictureRequest
    from safeflux.serve.problems import ProblemError
    from safeflux.serve.service import Service
    from safeflux.serve.settings import ServiceLimits, ServiceSettings
    from safeflux.serve.web.app import make_app
    from safeflux.serve.web.run import run_service

__all__ = [
    "EMOJI_FLUX",
    "EMOJI_FLUX_CALL",
    "ApplyError",
    "AuditError",
    "AuditLog",
    "BakeError",
    "Baked",
    "Calibration",
    "Compacted",
    "ConfigError",
    "Detector",
    "FileStatus",
    "GuardHandle",
    "MaskFileError",
    "MaskMeta",
    "MaskMismatchError",
    "MaskSet",
    "ModelError",
    "PackedTensor",
    "PictureRequest",
    "Plan",
    "Policy",
    "PolicyError",
    "PolicyPool",
    "Predicate",
    "ProblemError",
    "Rate",
    "SafeFluxError",
    "Service",
    "ServiceLimits",
    "ServiceSettings",
    "SignatureError",
    "Site",
    "Sites",
    "State",
    "Status",
    "Store",
    "StoreError",
    "TensorPlan",
    "TrainError",
    "Verification",
    "Wanted",
    "apply_masks_",
    "bake",
    "bundled_policies",
    "calibrate",
    "check_bake",
    "check_statement",
    "compact_",
    "compose",
    "draw",
    "export_onnx",
    "find_sites",
    "guard",
    "load_compact",
    "load_masks",
    "load_pipeline",
    "load_policy",
    "make_app",
    "make_assessment",
    "make_plan",
    "make_statement",
    "open_detector",
    "open_store",
    "plan_tensors",
    "run_service",
    "save_masks",
    "sign_statement",
    "verify_files",
    "verify_log",
]

_HOME = {
    "EMOJI_FLUX": "reference.model",
    "EMOJI_FLUX_CALL": "reference.model",
    "ApplyError": "errors",
    "AuditError": "errors",
    "AuditLog": "evidence.audit",
    "BakeError": "errors",
    "Baked": "baking.bake",
    "Calibration": "detectors.calibration",
    "Compacted": "model.compact",
    "ConfigError": "errors",
    "Detector": "detectors.base",
    "FileStatus": "baking.readback",
    "GuardHandle": "model.handle",
    "MaskFileError": "errors",
    "MaskMeta": "masks.meta",
    "MaskMismatchError": "errors",
    "MaskSet": "masks.mask_set",
    "ModelError": "errors",
    "PackedTensor": "convert.tensor_plan",
    "PictureRequest": "serve.engine",
    "Plan": "plan.resolve",
    "Policy": "policy.load",
    "PolicyError": "errors",
    "PolicyPool": "model.pool.pool",
    "Predicate": "plan.statement",
    "ProblemError": "serve.problems",
    "Rate": "rates",
    "SafeFluxError": "errors",
    "Service": "serve.service",
    "ServiceLimits": "serve.settings",
    "ServiceSettings": "serve.settings",
    "SignatureError": "errors",
    "Site": "families.sites",
    "Sites": "families.sites",
    "State": "plan.status",
    "Status": "plan.status",
    "Store": "masks.store",
    "StoreError": "errors",
    "TensorPlan": "convert.tensor_plan",
    "TrainError": "errors",
    "Verification": "model.verify",
    "Wanted": "detectors.base",
    "apply_masks_": "model.apply",
    "bake": "baking.bake",
    "bundled_policies": "policy.load",
    "calibrate": "detectors.calibration",
    "check_bake": "baking.bake",
    "check_statement": "evidence.envelope",
    "compact_": "model.compact",
    "compose": "masks.mask_set",
    "draw": "reference.measure",
    "export_onnx": "convert.onnx_export",
    "find_sites": "families.sites",
    "guard": "model.guard",
    "load_compact": "convert.load_compact",
    "load_masks": "masks.file",
    "load_pipeline": "reference.model",
    "load_policy": "policy.load",
    "make_app": "serve.web.app",
    "make_assessment": "plan.oscal",
    "make_plan": "model.planning",
    "make_statement": "plan.statement",
    "open_detector": "detectors.specs",
    "open_store": "masks.store",
    "plan_tensors": "convert.tensor_plan",
    "run_service": "serve.web.run",
    "save_masks": "masks.file",
    "sign_statement": "evidence.envelope",
    "verify_files": "baking.verify",
    "verify_log": "evidence.audit",
}
"""Each public name's module, under `safeflux`."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safeflux' has no attribute {name!r}")
    found = getattr(import_module(f"safeflux.{_HOME[name]}"), name)
    globals()[name] = found  # found at once from now on
    return found


def __dir__() -> list[str]:
    return __all__
