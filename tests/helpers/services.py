"""Services as processes of their own, asked over loopback."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image, ImageChops

OPERATOR = "a-token-of-the-operator"
START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def service(
    command: list[str], log: Path, *, path: str = "/healthz", environment: Mapping[str, str] = {}
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Run a command that serves on a port of its own, until the block ends; what it prints goes to a file."""
    port = free_port()
    variables = {**os.environ, "SAFEFLUX_TOKEN": OPERATOR, "OMP_NUM_THREADS": "1", **environment}
    with log.open("ab") as out:
        whole = [sys.executable, *command, "--port", str(port)]
        process = subprocess.Popen(whole, env=variables, stdout=out, stderr=out)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            try:
                deadline = time.monotonic() + START_SECONDS
                while True:
                    assert process.poll() is None, log.read_text()
                    try:
                        client.get(path)
                        break
                    except httpx.TransportError:
                        assert time.monotonic() < deadline, log.read_text()
                        time.sleep(0.1)
                yield client, process
            finally:
                process.kill()
                process.wait()


def distance(png: bytes, expected: Image.Image) -> int:
    """The largest difference of a pixel, 0 to 255; up to 2 for sums in another order, in another process."""
    with Image.open(io.BytesIO(png)) as image:
        difference = ImageChops.difference(image.convert("RGB"), expected.convert("RGB"))
    return int(max(high for _, high in difference.getextrema()))
