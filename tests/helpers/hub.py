"""A hub on this machine: repositories at one commit, over HTTP as huggingface_hub asks for them."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(
    repositories: Mapping[str, Mapping[str, bytes]], *, first_after: float = 0
) -> Iterator[tuple[str, list[str]]]:
    """Serve repositories, each its files by path, while the context is open.

    Args:
        repositories: By name.
        first_after: Seconds that the first request waits for its answer.

    Yields:
        The endpoint, and the paths that were asked for so far.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(is_wanted=False)

        def do_GET(self) -> None:
            self.answer(is_wanted=True)

        def answer(self, *, is_wanted: bool) -> None:
            path = unquote(self.path.partition("?")[0]).strip("/")
            asked.append(path)
            time.sleep(first_after if len(asked) == 1 else 0)
            parts = path.split("/")
            name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
            files = repositories.get(name)
            if files is None:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif parts[0] == "api" and parts[4:] == ["tree", COMMIT]:
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif parts[0] == "api" and parts[-1] == COMMIT:
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "private": False}).encode()
                self.send(200, body, {"Content-Type": "application/json"})
            elif parts[2:4] == ["resolve", COMMIT] and "/".join(parts[4:]) in files:
                data = files["/".join(parts[4:])]
                facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
                self.send(200, data, facts, is_wanted=is_wanted)
            else:
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})

        def send(self, status: int, body: bytes, headers: Mapping[str, str], *, is_wanted: bool = True) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if is_wanted:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
