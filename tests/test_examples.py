"""The services of `examples/`, as processes of their own, asked over loopback by several clients at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import ImageChops

import safeflux
from safeflux.evidence.audit import verify_log
from safeflux.policy.load import load_policy
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from tests.helpers.services import distance, free_port, service

SERVICE = Path(__file__).parent.parent / "examples" / "fastapi_service.py"
ASKED = {"prompt": "a dagger, noto style, white background", "seed": 7}
POLICIES = ("moderate", "brand")
"""One that erases what is asked for, and one that does not."""


@pytest.fixture(scope="module")
def pictures():
    """What each policy draws, by its digest."""
    pipe, found = load_pipeline(), {}
    for name in POLICIES:
        with safeflux.guard(pipe, name):
            found[load_policy(name).digest] = draw(pipe, [ASKED["prompt"]], ASKED["seed"])[0]
    one, other = (picture.convert("RGB") for picture in found.values())
    assert max(high for _, high in ImageChops.difference(one, other).getextrema()) > 100
    return found


@pytest.mark.slow
def test_an_app_of_ones_own_draws_guarded_beside_the_routes_of_the_service(tmp_path, pictures):
    command = [str(SERVICE), "--policy", "moderate", "--policy", "brand", "--audit", str(tmp_path / "audit")]
    with service(command, tmp_path / "out.txt") as (client, process):
        mine = client.post("/icon", json={"thing": "dagger", "seed": ASKED["seed"]})
        assert mine.headers["x-safeflux-policy"] == load_policy("moderate").digest
        assert distance(mine.content, pictures[load_policy("moderate").digest]) <= 2
        assert client.post("/icon", json={"thing": "anything else"}).status_code == 422
        theirs = client.post("/draw", json=ASKED | {"policy": "brand"})
        assert distance(theirs.content, pictures[load_policy("brand").digest]) <= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert verify_log(tmp_path / "audit").faults == ()
    assert verify_log(tmp_path / "audit").lines == 2


RAY = SERVICE.parent / "ray_service.py"


@pytest.mark.cluster
def test_replicas_roll_to_another_policy_without_a_dropped_or_an_unguarded_request(tmp_path, pictures):
    pytest.importorskip("ray")
    port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "300"  # Ray replaces a proxy that comes up slowly
    command = [sys.executable, str(RAY), "up", "--policy", POLICIES[0], "--port", str(port)]
    served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    answers, stop = [], threading.Event()

    def ask():
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                try:
                    answers.append(client.post(f"http://127.0.0.1:{port}/draw", json=ASKED))
                except httpx.TransportError as error:
                    answers.append(error)

    def some_more(count):
        wanted, deadline = len(answers) + count, time.monotonic() + 120
        while len(answers) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    try:
        lines = iter(served.stdout.readline, "")
        assert any("serving" in line for line in lines), "it did not come up"
        for thread in threads:
            thread.start()
        some_more(20)
        rolled = subprocess.run(
            [sys.executable, str(RAY), "roll", POLICIES[1]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=480,
        )
        assert rolled.returncode == 0, rolled.stderr
        at_the_end = len(answers)
        some_more(20)
        so_far = list(answers)
        assert all(getattr(answer, "status_code", None) == 200 for answer in so_far), "a request was dropped"
        policies = [answer.headers["x-safeflux-policy"] for answer in so_far]
        assert set(policies) == pictures.keys()
        assert set(policies[at_the_end + 4 :]) == {load_policy(POLICIES[1]).digest}  # four were under way
        processes = {int(answer.headers["x-safeflux-process"]) for answer in so_far[at_the_end + 4 :]}
        assert len(processes) == 2
        os.kill(min(processes), signal.SIGKILL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            some_more(10)
            now = {a.headers["x-safeflux-process"] for a in answers[-10:] if getattr(a, "status_code", 0) == 200}
            if len(now - {str(min(processes))}) == 2:
                break
        assert len(now) == 2  # another replica is in its place
    finally:
        stop.set()
        for thread in threads:
            if thread.is_alive():
                thread.join(timeout=60)
        served.terminate()
        served.communicate(timeout=120)
    good = [answer for answer in answers if getattr(answer, "status_code", None) == 200]
    far = [distance(answer.content, pictures[answer.headers["x-safeflux-policy"]]) for answer in good]
    assert max(far) <= 2, far
    assert len(answers) - len(good) <= 4  # what the killed one was drawing


BENTO = SERVICE.parent / "bentoml_service.py"


@pytest.mark.stacks
def test_a_service_of_bentoml_draws_guarded(tmp_path, pictures):
    pytest.importorskip("bentoml", reason="needs BentoML (pip install bentoml)")
    command = ["-m", "bentoml", "serve", f"{BENTO}:Guarded"]
    environment = {
        "SAFEFLUX_POLICY": "moderate",
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(tmp_path / "home"),
    }
    with service(command, tmp_path / "out.txt", path="/readyz", environment=environment) as (client, process):
        try:
            deadline = time.monotonic() + 120
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline, (tmp_path / "out.txt").read_text()
                time.sleep(0.2)
            with ThreadPoolExecutor(4) as threads:
                answers = list(threads.map(lambda _: client.post("/draw", json=ASKED), range(8)))
            for answer in answers:
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-safeflux-policy"] == load_policy("moderate").digest
                assert distance(answer.content, pictures[load_policy("moderate").digest]) <= 2
            assert client.post("/draw", json={"prompt": "a" * 1001}).status_code == 400
        finally:  # or its workers would go on
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
