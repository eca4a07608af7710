"""The services of `examples/`, as processes of their own, asked over loopback by several clients at once."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageChops

import safeflux
from safeflux.audit import verify_log
from safeflux.policy import load_policy
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline

SERVICE = Path(__file__).parent.parent / "examples" / "fastapi_service.py"
TOKEN = "of the test"
ASKED = {"prompt": "a dagger, noto style, white background", "seed": 7}
POLICIES = ("moderate", "brand")
"""One that erases what is asked for, and one that does not."""


@contextmanager
def service(folder, policy="moderate"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVICE), "--policy", policy, "--port", str(port), "--audit", str(folder / "audit")]
    environment = {**os.environ, "SAFEFLUX_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            deadline = time.monotonic() + 90
            while True:
                assert process.poll() is None, process.stderr.read()
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield client, process
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


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


def is_picture(answer, expected):
    """Up to the rounding of sums in another order, in another process."""
    with Image.open(io.BytesIO(answer.content)) as image:
        difference = ImageChops.difference(image.convert("RGB"), expected.convert("RGB"))
    return max(high for _, high in difference.getextrema()) <= 2


def swap(client, policy):
    return client.put("/policy", json={"policy": policy}, headers={"authorization": f"Bearer {TOKEN}"})


@pytest.mark.slow
def test_pictures_under_load_are_each_of_the_policy_that_they_name(tmp_path, pictures):
    with service(tmp_path) as (client, _):
        answers, stop = [], threading.Event()

        def ask():
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    answers.append(own.post("/draw", json=ASKED))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for k in range(6):
            time.sleep(0.3)
            assert swap(client, POLICIES[(k + 1) % 2]).status_code == 200
            health = client.get("/healthz")
            assert (health.status_code, health.json()["state"]) == (200, "GUARDED")
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
        assert all(answer.status_code == 200 for answer in answers)
        assert {answer.headers["x-safeflux-policy"] for answer in answers} == pictures.keys()
        assert all(is_picture(answer, pictures[answer.headers["x-safeflux-policy"]]) for answer in answers)
        metrics = client.get("/metrics").text
        assert 'safeflux_guard_state{state="GUARDED"} 1.0' in metrics
        assert "safeflux_swaps_total 6.0" in metrics
        assert f"safeflux_draw_seconds_count {len(answers):.1f}" in metrics
    log = verify_log(tmp_path / "audit")
    assert (log.lines, log.faults) == (7, ())
    assert ASKED["prompt"] not in (tmp_path / "audit").read_text()


@pytest.mark.slow
def test_only_the_token_swaps_and_what_cannot_be_done_leaves_the_old_policy(tmp_path, pictures):
    with service(tmp_path) as (client, process):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            assert client.put("/policy", json={"policy": "brand"}, headers=headers).status_code == 401
        refused = swap(client, "no-such-policy")
        assert refused.status_code == 409
        assert "stays in force" in refused.json()["detail"]
        assert swap(client, "../secrets").status_code == 422
        assert client.get("/healthz").json()["policy"] == "moderate"
        assert is_picture(client.post("/draw", json=ASKED), pictures[load_policy("moderate").digest])
        process.send_signal(signal.SIGKILL)
        process.wait()
    with service(tmp_path) as (client, _):  # after the kill it comes up guarded, and goes on with its log
        assert is_picture(client.post("/draw", json=ASKED), pictures[load_policy("moderate").digest])
    assert verify_log(tmp_path / "audit").faults == ()
    assert verify_log(tmp_path / "audit").lines == 2
