"""`safeflux serve` as a process of its own, asked by several clients at once, killed and restarted."""

import base64
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest

from safeflux.evidence.audit import read_last, verify_log
from safeflux.policy.load import load_policy
from tests.helpers.services import distance, service
from tests.serve.conftest import AS_OPERATOR, KIDS, LIVE, MORE, PROMPT, SEED, TIGHT, digest, offered

pytestmark = pytest.mark.slow
AS_KIDS = {"authorization": f"Bearer {KIDS}"}
ASKED = {"prompt": PROMPT, "seed": SEED}
MODERATE = load_policy("moderate").digest


def put(client, text, **headers):
    return client.put("/policies/live", content=text, headers=AS_OPERATOR | headers)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def until_answered(answers, more):
    enough = len(answers) + more
    until(lambda: len(answers) >= enough)


@contextmanager
def asking(client, threads, headers, policies=(None,)):
    """Clients that ask one after another; their answers."""
    answers, stop = [], threading.Event()

    def ask(policy):
        with httpx.Client(base_url=client.base_url, timeout=60, headers=headers) as own:
            while not stop.is_set():
                answers.append(own.post("/draw", json=ASKED | ({"policy": policy} if policy else {})))

    running = [threading.Thread(target=ask, args=(policies[k % len(policies)],)) for k in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in running:
            thread.join(timeout=60)


def test_pictures_under_load_are_each_of_the_policy_that_they_name(served, pictures, home):
    client, _ = served
    with asking(client, 4, AS_OPERATOR, ("moderate", "live")) as answers:
        for text in (TIGHT, LIVE, TIGHT):
            assert put(client, text).status_code == 200
            health = client.get("/readyz")
            assert (health.status_code, health.json()["state"]) == (200, "GUARDED")
            until_answered(answers, 5)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-safeflux-policy"] for answer in answers} == pictures.keys()
    far = [distance(a.content, pictures[a.headers["x-safeflux-policy"]]) for a in answers]
    assert max(far) <= 2
    gauges = [line for line in client.get("/metrics").text.splitlines() if 'policy="live"' in line]
    assert {line.partition('policy_sha256="')[2][:64] for line in gauges} == {digest(TIGHT)}
    assert client.post("/rollback", headers=AS_OPERATOR).json()["policies"]["live"] == digest(LIVE)
    assert (home / "policies" / "live.yaml").read_text() == LIVE
    found = verify_log(home / "audit.jsonl")
    assert found.faults == ()
    assert [line["action"] for line in read_last(home / "audit.jsonl", 8)] == ["rollback", "asked"] + 3 * [
        "put",
        "asked",
    ]
    assert PROMPT not in (home / "audit.jsonl").read_text()


def test_a_token_says_which_policies_and_whether_writes(served, home):
    client, _ = served
    assert client.post("/draw", json=ASKED).status_code == 401
    assert client.post("/draw", json=ASKED, headers={"authorization": "Bearer wrong"}).status_code == 401
    refused = client.post("/draw", json=ASKED | {"policy": "moderate"}, headers=AS_KIDS)
    assert (refused.status_code, refused.json()["code"]) == (403, "policy")
    assert client.post("/draw", json=ASKED, headers=AS_KIDS).headers["x-safeflux-policy-name"] == "live"
    assert [row["name"] for row in client.get("/policies", headers=AS_KIDS).json()["policies"]] == ["live"]
    before = verify_log(home / "audit.jsonl").lines
    for method, path in (
        ("PUT", "/policies/live"),
        ("DELETE", "/policies/live"),
        ("POST", "/rollback"),
        ("GET", "/receipt"),
        ("GET", "/audit"),
    ):
        assert client.request(method, path, headers=AS_KIDS).status_code == 403
        assert client.request(method, path).status_code == 401
    assert verify_log(home / "audit.jsonl").lines == before


def test_what_cannot_be_in_force_leaves_the_old_policies(served, home):
    client, _ = served
    before, now = verify_log(home / "audit.jsonl").lines, offered(client)
    invalid = put(client, LIVE + "adpaters: deny\n")
    assert invalid.status_code == 422
    assert "live.yaml:5:1: unknown key 'adpaters'" in invalid.json()["detail"]
    unknown = put(client, TIGHT.replace("[weapons]", "[weapon]"))
    assert unknown.status_code in (404, 409)
    assert "did you mean 'weapons'?" in unknown.json()["detail"]
    assert put(client, TIGHT, **{"if-match": '"99"'}).status_code == 412
    fixed = client.put("/policies/moderate", content=TIGHT, headers=AS_OPERATOR)
    assert "is fixed" in fixed.json()["detail"]
    renamed = client.put("/policies/shop", content=TIGHT, headers=AS_OPERATOR)
    assert (renamed.status_code, renamed.json()["detail"]) == (
        422,
        "shop.yaml: name: expected 'shop', the name of the file, got 'live'; change one of them",
    )
    assert client.put("/policies/..%2Fx", content=TIGHT, headers=AS_OPERATOR).status_code in (404, 405, 422)
    assert "was given at the start" in client.delete("/policies/moderate", headers=AS_OPERATOR).json()["detail"]
    needed = client.delete("/policies/live", headers=AS_OPERATOR)
    assert (needed.status_code, "a token names the policy 'live'" in needed.json()["detail"]) == (409, True)
    once = "the query: expected nothing but dry_run, once; nothing was changed"
    for query, words in (
        ("dryrun=1", once),
        ("dry_run=1&dry_run=0", once),
        ("dry_run=maybe", "dry_run: expected true or false"),
    ):
        slip = client.put(f"/policies/live?{query}", content=TIGHT, headers=AS_OPERATOR)
        assert (slip.status_code, slip.json()["detail"]) == (422, words)
    assert client.post("/rollback?dry_run=1", headers=AS_OPERATOR).status_code == 422
    dry = client.put("/policies/live?dry_run=1", content=TIGHT, headers=AS_OPERATOR)
    assert dry.json()["changes"]["verdict"] in ("mixed", "relaxed", "tightened")
    assert offered(client) == now
    assert (home / "policies" / "live.yaml").read_text() == LIVE
    lines = read_last(home / "audit.jsonl", verify_log(home / "audit.jsonl").lines - before)
    assert {line["action"] for line in lines} <= {"refused"}


def test_the_next_policy_is_shown_from_the_same_noises_before_it_is_in_force(served, pictures):
    client, _ = served
    now = offered(client)
    with asking(client, 1, AS_KIDS) as answers:
        body = {"text": TIGHT, "prompts": [PROMPT], "seed": SEED}
        shown = client.post("/policies/live/preview", json=body, headers=AS_OPERATOR).json()
        until(lambda: answers)
    (pair,) = shown["pictures"]
    before, after = (base64.b64decode(pair[side].partition(",")[2]) for side in ("before", "after"))
    assert distance(before, pictures[digest(LIVE)]) <= 2
    assert distance(after, pictures[digest(TIGHT)]) <= 2
    assert shown["plan"]["categories"]["weapons"]["masks"]["weapons"]["figures"]["found"]
    assert {answer.headers["x-safeflux-policy"] for answer in answers} == {digest(LIVE)}
    assert offered(client) == now
    assert client.post("/draw", json=ASKED | {"policy": "live (next)"}, headers=AS_OPERATOR).status_code == 404
    long = client.post("/policies/live/preview", json=body | {"prompts": ["x" * 5000]}, headers=AS_OPERATOR)
    assert long.status_code == 400


def test_a_client_of_openai_draws_and_gets_its_own_errors(served, pictures):
    client, _ = served
    url = f"{client.base_url}/v1"
    with openai.OpenAI(api_key=KIDS, base_url=url, max_retries=0) as kids:
        assert [model.id for model in kids.models.list()] == ["emoji-flux", "emoji-flux@live"]
        found = kids.images.generate(prompt=PROMPT, n=2, size="64x64", quality="high", extra_body={"seed": SEED})
        first, second = (base64.b64decode(image.b64_json) for image in found.data)
        assert distance(first, pictures[digest(LIVE)]) <= 2
        assert second != first
        assert kids.images.generate(prompt="a dog", model="emoji-flux@live", size="32x48").data
        with pytest.raises(openai.PermissionDeniedError, match="allows live"):
            kids.images.generate(prompt=PROMPT, model="emoji-flux@moderate")
        with pytest.raises(openai.NotFoundError, match="no model 'dall-e'"):
            kids.images.generate(prompt=PROMPT, model="dall-e")
        for wrong in ({"n": 9}, {"size": "1024x1024"}, {"size": "63x64"}, {"response_format": "url"}):
            with pytest.raises(openai.BadRequestError, match="expected"):
                kids.images.generate(prompt=PROMPT, **wrong)
    with openai.OpenAI(api_key="wrong", base_url=url) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt=PROMPT)


def test_the_queue_has_an_end_and_health_does_not_wait_in_it(served):
    client, _ = served
    done = []

    def ask():
        done.append(httpx.post(f"{client.base_url}/draw", json=ASKED, headers=AS_KIDS, timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    until(lambda: any(answer.status_code == 429 for answer in done))
    assert client.get("/healthz").status_code == 200
    assert sum(answer.status_code == 200 for answer in done) < 6, "the health check waited for pictures"
    for thread in threads:
        thread.join(timeout=120)
    assert {answer.status_code for answer in done} == {200, 429}
    assert all(int(a.headers["retry-after"]) >= 1 for a in done if a.status_code == 429)
    assert sum(answer.status_code == 200 for answer in done) >= 6
    assert "safeflux_requests_refused 0.0" not in client.get("/metrics").text


def test_a_response_waits_for_no_acknowledgement(served):
    client, _ = served
    taken = []
    for _ in range(20):
        began = time.monotonic()
        client.get("/healthz")
        taken.append(time.monotonic() - began)
    assert min(taken[5:]) < 0.03  # 0.04 s each without TCP_NODELAY


def test_the_folder_is_watched_and_what_is_wrong_in_it_changes_nothing(served, home):
    client, _ = served
    file = home / "policies" / "live.yaml"
    file.write_text(LIVE + "adpaters: deny\n")
    (home / "policies" / "more.yaml").write_text(MORE)

    def fault():
        return client.get("/policies", headers=AS_OPERATOR).json()["fault"]

    until(lambda: "unknown key 'adpaters'" in fault())
    assert offered(client).keys() == {"moderate", "live"}
    assert "safeflux_policy_folder_fault 1.0" in client.get("/metrics").text
    file.write_text(LIVE)
    until(lambda: "more" in offered(client))
    assert fault() == ""
    assert client.delete("/policies/more", headers=AS_OPERATOR).status_code == 200
    assert not (home / "policies" / "more.yaml").exists()
    assert offered(client).keys() == {"moderate", "live"}


def test_spans_and_metrics_reach_a_collector_without_prompts(served, collected):
    client, _ = served
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = AS_KIDS | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert client.post("/draw", json=ASKED, headers=headers).status_code == 200

    def mine():
        return {span.name: span for span in collected.spans if span.trace_id.hex() == trace}

    until(lambda: {"safeflux.request", "safeflux.draw"} <= mine().keys())
    request, drawn = mine()["safeflux.request"], mine()["safeflux.draw"]
    assert drawn.parent_span_id == request.span_id
    assert request.start_time_unix_nano <= drawn.start_time_unix_nano
    values = {each.key: each.value.string_value for each in drawn.attributes}
    assert (values["safeflux.policy"], values["safeflux.policy_sha256"]) == ("live", digest(LIVE))
    assert "safeflux.pool" in {span.name for span in collected.spans}  # the guard at the start
    until(lambda: {"safeflux_guard_state", "safeflux_pictures_total"} <= collected.metrics.keys())
    states = {
        point.attributes[0].value.string_value: point.as_double for point in collected.metrics["safeflux_guard_state"]
    }
    assert states["GUARDED"] == 1
    assert sum(states.values()) == 1
    assert b"dagger" not in collected.bytes


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


def test_odd_large_and_slow_requests(served, home):
    client, _ = served
    json_type = AS_KIDS | {"content-type": "application/json"}
    for body in (b'{"prompt": "a dog \\ud800 hidden"}', b'{"prompt": ["hidden"]}', b'{"prompt": "hidden", "steps": 3}'):
        answer = client.post("/draw", content=body, headers=json_type)
        assert answer.status_code in (400, 422)
        assert "hidden" not in answer.text
    for body, kind, words in (
        (b'{"prompt": "a dog"}', "text/plain", "expected a JSON object, with `content-type: application/json`"),
        (b"[" * 30_000, "application/json", "the body: cannot be read as JSON"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "application/json", "the body: cannot be read as JSON"),
    ):
        answer = client.post("/draw", content=body, headers=AS_KIDS | {"content-type": kind})
        assert (words in answer.json()["detail"], answer.json()["code"]) == (True, "invalid")
    for wrong, words in (
        ({"seed": "7"}, "seed: expected a whole number"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"seed": 7.0}, "seed: expected a whole number"),
        ({"seed": -1}, "seed: expected a number of at least 0"),
        ({"steps": 3, "prompt": 1}, "prompt: expected text; steps: unknown field"),
    ):
        answer = client.post("/draw", json=ASKED | wrong, headers=AS_KIDS)
        assert (answer.status_code, answer.json()["detail"]) == (422, words)
    for wrong, words in (({"n": "2"}, "n: expected a whole number"), ({"stream": 0}, "stream: expected true or false")):
        answer = client.post("/v1/images/generations", json={"prompt": PROMPT} | wrong, headers=AS_KIDS)
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, words)
    answer = client.post("/draw", content=b'{"prompt": "a dog",}', headers=json_type)
    assert answer.json()["detail"].startswith("the body, character 19: not valid JSON")
    stale = client.delete("/policies/live", headers=AS_OPERATOR | {"if-match": "W/three"})
    assert stale.json()["detail"] == "if-match: expected the number of a revision, such as 3"
    badly = client.get("/policies/Live!", headers=AS_OPERATOR)
    assert badly.json()["detail"].startswith("name: expected a name: a name is 1 to 64 lower-case letters")
    large = b'{"prompt": "' + b"x" * 70_000
    assert client.post("/draw", content=large, headers=json_type).status_code == 413
    assert client.post("/draw", content=iter([large[:40_000], large[40_000:]]), headers=json_type).status_code == 413
    head = b"POST /draw HTTP/1.1\r\nhost: x\r\n"
    assert 1 < slow(client, head + b"content-length: 1000\r\n\r\n", b" ") < 8
    assert client.post("/draw", json={"prompt": "a dog, " * 100 + "a dagger"}, headers=AS_KIDS).status_code == 200
    assert "dagger" not in (home / "out.txt").read_text()


def test_a_killed_service_comes_back_with_its_revisions_and_a_stopped_one_says_so(served, home, command, pictures):
    client, process = served
    made = put(client, TIGHT)
    assert made.status_code == 200
    process.send_signal(signal.SIGKILL)
    process.wait()
    with service(command, home / "out.txt") as (client, process):
        assert offered(client) == {"moderate": MODERATE, "live": digest(TIGHT)}
        answer = client.post("/draw", json=ASKED, headers=AS_KIDS)
        assert distance(answer.content, pictures[digest(TIGHT)]) <= 2
        assert put(client, LIVE, **{"if-match": str(made.json()["revision"] - 1)}).status_code == 412
        second = subprocess.run([sys.executable, *command, "--port", "0"], capture_output=True, text=True)
        assert second.returncode == 1
        assert f"{home / 'state'}: another process is using it" in second.stderr
        back = client.post("/rollback", headers=AS_OPERATOR).json()
        assert (back["revision"], back["policies"]["live"]) == (made.json()["revision"] + 1, digest(LIVE))
        assert (home / "policies" / "live.yaml").read_text() == LIVE
        answer = client.post("/draw", json=ASKED, headers=AS_KIDS)
        assert distance(answer.content, pictures[digest(LIVE)]) <= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    found = verify_log(home / "audit.jsonl")
    assert found.faults == ()
    actions = [line["action"] for line in read_last(home / "audit.jsonl", 5)]
    assert actions == ["stop", "rollback", "asked", "guard", "put"]
    text = (home / "out.txt").read_text()
    assert "policies: moderate (default), live" in text
    assert "Traceback" not in text
