"""One service for most tests, and the pictures that it should draw."""

import hashlib

import pytest

import safeflux
from safeflux.policy.load import load_policy, load_policy_texts
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from tests.helpers.collector import collector
from tests.helpers.services import OPERATOR, service

PROMPT, SEED = "a dagger, noto style, white background", 7
KIDS = "a-token-of-the-kids-app"
AS_OPERATOR = {"authorization": f"Bearer {OPERATOR}"}
LIVE = "apiVersion: safeflux/v1\nkind: Policy\nname: live\nextends: brand\n"
TIGHT = LIVE.replace("extends: brand\n", "categories: {weapons: {action: enforce, masks: [weapons]}}\n")
"""What `live` says: one policy that erases a dagger, and one that does not."""
MORE = TIGHT.replace("name: live", "name: more")


def digest(text):
    return load_policy_texts({"live.yaml": text.encode()})["live.yaml"].digest


def offered(client):
    rows = client.get("/policies", headers=AS_OPERATOR).json()["policies"]
    return {row["name"]: row["sha256"] for row in rows}


@pytest.fixture(scope="session")
def live_pipe():
    """The embedded model in this process."""
    return load_pipeline()


@pytest.fixture(scope="session")
def pictures(live_pipe, tmp_path_factory):
    """What each policy draws, by its digest."""
    folder, found = tmp_path_factory.mktemp("policies"), {}
    for name, text in {"live": LIVE, "tight": TIGHT}.items():
        (folder / f"{name}.yaml").write_text(text)
    for policy in ("moderate", str(folder / "live.yaml"), str(folder / "tight.yaml")):
        with safeflux.guard(live_pipe, policy):
            found[load_policy(policy).digest] = draw(live_pipe, [PROMPT], SEED)[0]
    return found


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """What the service is started with: a folder of policies, tokens and a log."""
    home = tmp_path_factory.mktemp("service")
    (home / "policies").mkdir()
    (home / "policies" / "live.yaml").write_text(LIVE)
    digest = hashlib.sha256(KIDS.encode()).hexdigest()
    entry = f"  - {{name: kids-app, sha256: {digest}, policies: [live]}}\n"
    (home / "tokens.yaml").write_text(f"apiVersion: safeflux/v1\nkind: Tokens\ntokens:\n{entry}")
    return home


@pytest.fixture(scope="session")
def command(home):
    return [
        "-m", "safeflux", "serve", "--policy", "moderate", "--policies", str(home / "policies"),
        "--tokens", str(home / "tokens.yaml"), "--audit", str(home / "audit.jsonl"),
        "--state", str(home / "state"),
        "--queue", "5", "--request-seconds", "2", "--watch-seconds", "0.3", "--patience", "0.2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def collected():
    """What a service sends to a collector of OpenTelemetry."""
    with collector() as found:
        yield found


@pytest.fixture(scope="module")
def served(home, command, collected):
    fast = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "300"}
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.url, **fast}
    with service([*command, "--otel"], home / "out.txt", environment=environment) as (client, process):
        yield client, process
