"""Whether an ONNX model is guarded: its masked initializers are read and must be zero. No torch."""

import os
from pathlib import Path

from safeflux.copying import Progress
from safeflux.errors import ModelError
from safeflux.onnxfile import KEY, data_files, read_model
from safeflux.onnxweights import Weights
from safeflux.plan import plan_for
from safeflux.policy import Policy, load_policy
from safeflux.readback import FileStatus, base_of, parse_told, read_back
from safeflux.store import Store, StoreLike, open_store


def verify_onnx(
    path: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FileStatus:
    """Read every masked element of a policy in an ONNX model; arguments and result as for `verifyfile.verify_files`.

    Raises:
        ModelError: The model cannot be read, its weights cannot be found by name, nothing says what its base is, or
            neurons are gone.
        SafeFluxError: Whatever planning refuses.
    """
    effective, where = load_policy(policy), Path(path)
    model = read_model(where)
    data_files(model, where)
    weights = Weights.of(model, where)
    told = parse_told(next((entry.value for entry in model.metadata_props if entry.key == KEY), None), where)
    if told and told.get("form") == "compact":
        raise ModelError(
            f"{where}: is compacted, and what is left does not tell which neurons are gone. Verify the folder that it "
            "was exported from, with its base model: safeflux verify FOLDER --base MODEL"
        )
    plan = plan_for(effective, weights.sites(where), base_of(told, base, where), open_store(store))
    plan.check_enforces()
    return read_back(plan, "diffusers", lambda name: weights.tensors[name].rows(), told, progress)
