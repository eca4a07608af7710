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
from safeflux.evidence.audit import verify_log
from safeflux.policy.load import load_policy
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline

SERVICE = Path(__file__).parent.parent / "examples" / "fastapi_service.py"
TOKEN = "of the test"
ASKED = {"prompt": "a dagger, noto style, white background", "seed": 7}
POLICIES = ("moderate", "brand")
"""One that erases what is asked for, and one that does not."""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def service(folder, policy="moderate"):
    port = free_port()
    command = [sys.executable, str(SERVICE), "--policy", policy, "--port", str(port), "--audit", str(folder / "audit")]
    environment = {**os.environ, "SAFEFLUX_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "SAFEFLUX_REQUEST_SECONDS": "2"}
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
    return distance(answer, expected) <= 2


def distance(answer, expected):
    """The largest difference of a pixel, 0 to 255."""
    with Image.open(io.BytesIO(answer.content)) as image:
        difference = ImageChops.difference(image.convert("RGB"), expected.convert("RGB"))
    return max(high for _, high in difference.getextrema())


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


@pytest.mark.slow
def test_a_swap_is_in_the_log_and_in_the_gauges_or_is_taken_back(tmp_path):
    moderate, brand = (load_policy(name).digest for name in POLICIES)
    with service(tmp_path) as (client, _):

        def gauges():
            lines = client.get("/metrics").text.splitlines()
            return {line.rpartition(" ")[0] for line in lines if line.startswith("safeflux_masked_bits{")}

        before = {
            f'safeflux_masked_bits{{category="{c}",policy_sha256="{moderate}"}}'
            for c in load_policy("moderate").enforced
        }
        assert gauges() == before
        (tmp_path / "audit").rename(tmp_path / "kept")
        (tmp_path / "audit").mkdir()  # nothing can be appended to a folder, not even by root
        refused = swap(client, "brand")
        assert refused.status_code == 500
        assert "the swap was taken back: 'moderate' is in force" in refused.json()["detail"]
        assert client.get("/healthz").json() == {"state": "GUARDED", "policy": "moderate", "faults": []}
        assert client.post("/draw", json=ASKED).headers["x-safeflux-policy"] == moderate
        assert gauges() == before
        (tmp_path / "audit").rmdir()
        (tmp_path / "kept").rename(tmp_path / "audit")
        assert swap(client, "brand").status_code == 200
        assert client.post("/draw", json=ASKED).headers["x-safeflux-policy"] == brand
        assert gauges() == {
            f'safeflux_masked_bits{{category="{c}",policy_sha256="{brand}"}}' for c in ("character", "style")
        }
        assert "safeflux_swaps_total 1.0" in client.get("/metrics").text
    assert (verify_log(tmp_path / "audit").lines, verify_log(tmp_path / "audit").faults) == (2, ())


def slow(client, begin, then):
    """Send a byte now and then; the seconds until the server hung up."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as peer:
        began = time.monotonic()
        peer.sendall(begin)
        peer.settimeout(0.3)
        while time.monotonic() < began + 20:
            try:
                peer.sendall(then)
                if not peer.recv(1000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        return time.monotonic() - began


@pytest.mark.slow
def test_odd_large_and_slow_requests_and_many(tmp_path):
    with service(tmp_path) as (client, process):
        json_type = {"content-type": "application/json"}
        token = {"authorization": f"Bearer {TOKEN}"}
        for answer in (
            client.post("/draw", content=b'{"prompt": "a dog \\ud800 hidden"}', headers=json_type),
            client.put("/policy", content=b'{"policy": "\\udfff"}', headers=json_type | token),
            client.post("/draw", json={"prompt": "hidden" * 500}),
        ):
            assert answer.status_code == 422
            assert "hidden" not in answer.text

        large = b'{"prompt": "' + b"x" * 20_000
        assert client.post("/draw", content=large, headers=json_type).status_code == 413
        assert (
            client.post("/draw", content=iter([large[:10_000], large[10_000:]]), headers=json_type).status_code == 413
        )

        head = b"POST /draw HTTP/1.1\r\nhost: x\r\n"
        assert 1 < slow(client, head, b"a") < 8
        assert 1 < slow(client, head + b"content-length: 1000\r\n\r\n", b" ") < 8
        assert 1 < slow(client, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET", b" ") < 8

        assert client.post("/draw", json={"prompt": "a dog, " * 100 + "a dagger"}).status_code == 200

        done = []
        ask = lambda: done.append(httpx.post(f"{client.base_url}/draw", json=ASKED, timeout=120).status_code)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(60)]
        for thread in threads:
            thread.start()
        while not done:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 200
        answered = len(done)
        for thread in threads:
            thread.join(timeout=120)
        assert done == [200] * 60
        assert answered < 20, "the health check waited for pictures"
        process.terminate()
        told = process.stderr.read()
    assert "dagger" not in told
    assert "hidden" not in told


RAY = SERVICE.parent / "ray_service.py"


@pytest.mark.cluster
def test_replicas_roll_to_another_policy_without_a_dropped_or_an_unguarded_request(tmp_path, pictures):
    pytest.importorskip("ray")
    port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
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
            timeout=180,
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
    far = [distance(answer, pictures[answer.headers["x-safeflux-policy"]]) for answer in good]
    assert max(far) <= 2, far
    assert len(answers) - len(good) <= 4  # what the killed one was drawing
