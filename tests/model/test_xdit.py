"""xDiT's own wrappers around a guarded pipeline, as far as a CPU goes: two processes share the blocks of one model.

Nothing is drawn: xDiT's exchange between processes calls torch.cuda.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch

torch.version.cuda = "12.0"  # all that xfuser asks of an accelerator while it is imported
import xfuser

torch.version.cuda = None
from xfuser.core.distributed import init_distributed_environment
from xfuser.core.distributed.parallel_state import initialize_model_parallel

import safeflux
from safeflux.reference.model import load_pipeline

group, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=2)
init_distributed_environment(rank=rank, world_size=2, local_rank=rank, backend="gloo")
initialize_model_parallel(pipeline_parallel_degree=2, backend="gloo")
engine, _ = xfuser.xFuserArgs(model="emoji-flux", pipefusion_parallel_degree=2, warmup_steps=1).create_config()

pipe = load_pipeline()
handle = safeflux.guard(pipe, policy="strict")
found = {"before": handle.verify(deep=True).state}
guarded = {value.data_ptr(): (name, value.clone()) for name, value in pipe.transformer.state_dict().items()}
xfuser.xFuserFluxPipeline(pipeline=pipe, engine_config=engine)
found["wrapped"] = [type(part).__name__ for part in (pipe.transformer, pipe.scheduler)]
kept = [(value, *guarded[value.data_ptr()]) for value in pipe.transformer.state_dict().values()]
found["same bits"] = all(torch.equal(value, was) for value, _, was in kept)
found["kept"] = [name for _, name, _ in kept]
found["all"] = len(guarded)
found["after"] = handle.verify(deep=True).state
print(json.dumps(found))
"""


@pytest.mark.stacks
@pytest.mark.skipif(not importlib.util.find_spec("xfuser"), reason="needs xfuser (pip install xfuser triton)")
def test_each_process_keeps_guarded_weights_and_verify_says_what_it_cannot_know(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "group")]
    both = [subprocess.Popen([*command, rank], stdout=subprocess.PIPE, text=True) for rank in "01"]
    found = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in both]
    for one in found:
        assert one["before"] == "GUARDED"
        assert one["wrapped"] == ["xFuserFluxTransformer2DWrapper", "xFuserFlowMatchEulerDiscreteSchedulerWrapper"]
        assert one["same bits"]
        assert one["after"] in ("STALE", "DEGRADED")
    assert 0 < len(found[1]["kept"]) < found[0]["all"]
    assert len({name for one in found for name in one["kept"]}) == found[0]["all"]
