"""Changes of policies, all or nothing, and what a service refuses to start with; in this process."""

import resource
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from safeflux.errors import ApplyError, AuditError, ConfigError, PolicyError, SafeFluxError
from safeflux.evidence.audit import read_last
from safeflux.policy.load import load_policy_texts
from safeflux.profiles.load import load_profile
from safeflux.serve.access import Access, new_token, read_tokens
from safeflux.serve.desk import StaleError
from safeflux.serve.engine import GoneError, PictureRequest, UnguardedError
from safeflux.serve.folder import policies_of
from safeflux.serve.revisions import KEPT, Revision, RevisionFolder
from safeflux.serve.service import Service
from safeflux.serve.settings import ServiceSettings
from safeflux.serve.trial import trial_prompts
from tests.serve.conftest import LIVE, MORE, TIGHT

TOKEN = "a-token-of-the-operator"


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "live.yaml").write_text(LIVE)
    return ServiceSettings(
        model="emoji-flux",
        policies=("moderate",),
        folder=folder,
        audit=tmp_path / "audit.jsonl",
        state=tmp_path / "state",
        watch_seconds=600,
    )


@pytest.fixture
def service(settings, live_pipe):
    service = Service.open(settings, live_pipe, operator=TOKEN)
    yield service
    service.close()


def actions(service, count):
    return [line["action"] for line in read_last(service.desk.audit.path, count)]


def in_force(service):
    assert service.engine.pool.verify(deep=True).ok
    assert service.engine.pool.policies == dict(service.desk.current.policies)
    return service.desk.current.digests, service.desk.folder.read()


@contextmanager
def files_up_to(size):
    """The system refuses larger files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_change_that_the_log_does_not_take_is_taken_back(service):
    before, log = in_force(service), service.desk.audit.path
    one_receipt = log.stat().st_size
    with files_up_to(one_receipt + 100), pytest.raises(AuditError, match="File too large"):
        service.desk.put("live", TIGHT.encode(), "operator")
    assert log.stat().st_size == one_receipt
    assert in_force(service) == before
    # The request fits into the log, a second receipt does not.
    with files_up_to(2 * one_receipt), pytest.raises(AuditError, match=r"File too large.*the change was taken back"):
        service.desk.put("live", TIGHT.encode(), "operator")
    assert actions(service, 3) == ["refused", "asked", "guard"]
    assert in_force(service) == before
    assert service.desk.current.number == 1


def test_a_change_that_the_folder_does_not_take_is_taken_back(service, settings):
    before = in_force(service)
    (settings.folder / "more.yaml").mkdir()
    with pytest.raises(PolicyError, match=r"cannot be written to .* taken back"):
        service.desk.put("more", MORE.encode(), "operator")
    (settings.folder / "more.yaml").rmdir()
    assert in_force(service) == before
    assert actions(service, 2) == ["refused", "asked"]
    assert "not a regular file" in read_last(service.desk.audit.path, 1)[0]["receipt"]["reason"]


def test_a_policy_in_the_folder_has_the_name_of_its_file():
    with pytest.raises(PolicyError, match=r"^more.yaml: name: expected 'more', the name of the file, got 'live'"):
        policies_of({"more.yaml": TIGHT.encode(), "live.yaml": LIVE.encode()})


def test_changes_are_numbered_and_gone_back_from_one_by_one(service):
    desk, first = service.desk, in_force(service)
    desk.put("live", TIGHT.encode(), "operator", revision=1)
    second = in_force(service)
    desk.put("more", MORE.encode(), "operator", revision=2)
    with pytest.raises(StaleError, match="based on revision 2, but 3 is in force"):
        desk.delete("more", "operator", revision=2)
    assert desk.roll_back("operator").number == 4
    assert in_force(service) == second
    assert desk.roll_back("operator").number == 5
    assert in_force(service) == first
    with pytest.raises(PolicyError, match="there is no earlier revision"):
        desk.roll_back("operator")
    unchanged = desk.current.since["moderate"]
    desk.put("live", TIGHT.encode(), "operator")
    assert desk.current.since["moderate"] == unchanged
    assert desk.current.since["live"] > unchanged


def test_a_change_that_the_state_does_not_take_is_taken_back(service, settings):
    service.desk.put("live", TIGHT.encode(), "operator")
    before, kept = in_force(service), (settings.state / "revisions.json").read_bytes()
    (settings.state / "revisions.json").rename(settings.state / "away")
    (settings.state / "revisions.json").mkdir()
    with pytest.raises(PolicyError, match=r"revisions.json: cannot be written .* taken back"):
        service.desk.put("live", LIVE.encode(), "operator")
    (settings.state / "revisions.json").rmdir()
    (settings.state / "away").rename(settings.state / "revisions.json")
    assert in_force(service) == before
    assert actions(service, 2) == ["refused", "asked"]
    with files_up_to(settings.audit.stat().st_size + 1200), pytest.raises(AuditError, match="taken back"):
        service.desk.put("live", LIVE.encode(), "operator")
    assert in_force(service) == before
    assert (settings.state / "revisions.json").read_bytes() == kept


def test_revisions_survive_a_stop_and_so_does_what_an_edit_meanwhile_replaced(settings, live_pipe):
    first = Service.open(settings, live_pipe, operator=TOKEN)
    for number in range(KEPT + 3):
        first.desk.put("live", LIVE.encode() + b"# %d" % number, "operator")
    since, made = first.desk.current.since, in_force(first)
    first.close()
    (settings.folder / "more.yaml").write_text(MORE)
    second = Service.open(settings, live_pipe, operator=TOKEN)
    try:
        assert second.desk.current.number == KEPT + 5
        assert second.desk.num_older == KEPT
        assert second.desk.current.since.items() >= since.items()
        assert second.desk.roll_back("operator").by == "operator"
        assert in_force(second) == made
        assert second.desk.num_older == KEPT - 1
    finally:
        second.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-20], "is damaged"),
        (lambda data: data.replace(b"extends: brand", b"extends: strict"), "its sha256 is not that of its content"),
        (lambda data: data.replace(b"revisions/1", b"revisions/2"), "its format is 'safeflux-revisions/2'"),
        (lambda data: b"[]", "is damaged"),
        (lambda data: b"{}", "its format is None"),
        (lambda data: b"", "is damaged"),
    ],
)
def test_a_damaged_state_is_refused_before_the_model_is_loaded(settings, damage, words):
    settings.state.mkdir()
    state = RevisionFolder(settings.state)
    policies = load_policy_texts({"live.yaml": LIVE.encode()})
    state.write([Revision.after(None, policies, {"live.yaml": LIVE.encode()}, "operator")])
    state.close()
    file = settings.state / "revisions.json"
    file.write_bytes(damage(file.read_bytes()))
    damaged = file.read_bytes()
    for _ in range(2):  # the first refusal leaves the folder unlocked
        with pytest.raises(ConfigError, match=rf"revisions.json: .*{words}.*move it away to start without"):
            Service.open(settings, operator=TOKEN)
    assert file.read_bytes() == damaged
    assert not settings.audit.exists()


def test_an_edit_that_was_overtaken_by_another_change_is_not_put_in_force(service, settings):
    before, file = in_force(service), settings.folder / "live.yaml"
    file.write_text(TIGHT)
    service.desk.look()
    looking = threading.Thread(target=service.desk.look)
    with service.desk._changing(None):
        looking.start()  # the edit has settled, and waits for its turn
        time.sleep(0.3)
        file.write_text(LIVE)
    looking.join()
    assert in_force(service) == before
    assert actions(service, 1) == ["guard"]


def test_one_change_waits_for_another_and_previews_leave_no_trace(service):
    before, wanted = in_force(service), [PictureRequest("a dog", (1,))]
    done = []

    def preview():
        pairs, _ = service.desk.try_out("live", TIGHT.encode(), wanted, "operator")
        done.append(pairs)

    threads = [threading.Thread(target=preview) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert in_force(service) == before
    assert actions(service, 3) == ["asked", "asked", "guard"]


def test_a_preview_asks_for_one_thing_of_each_category_in_the_models_own_words(service):
    _, plan = service.desk.check("live", TIGHT.encode())
    stored = plan.categories["weapons"].stored[0]
    owls = replace(stored, meta=replace(stored.meta, concepts=("old-owl", "dagger")))
    plan = replace(plan, categories={"weapons": replace(plan.categories["weapons"], stored=(owls,))})
    assert trial_prompts(load_profile("flux1-dev"), plan) == ["a photo of an old owl"]
    (prompt,) = trial_prompts(service.engine.profile, plan)
    assert prompt.startswith("an old owl, ")
    assert prompt.endswith(" background")


def test_nothing_is_drawn_while_the_guard_does_not_hold_nor_for_who_is_gone(service, live_pipe):
    weight = live_pipe.transformer.context_embedder.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
        with pytest.raises(UnguardedError, match="DEGRADED"):
            service.engine.draw("moderate", PictureRequest("a dog", (1,)))
        with pytest.raises(ApplyError, match="nothing was written"):
            service.engine.draw("live", PictureRequest("a dog", (1,)))
        service.health.look()
        assert not service.health.is_guarded
        assert not service.health.is_ready
        weight.copy_(saved)
    service.health.look()
    assert service.health.is_ready
    with pytest.raises(GoneError):
        service.engine.draw("live", PictureRequest("a dog", (1,)), lambda: True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"default": "lvie"}, "default policy 'lvie' is not among those of this service; did you mean 'live'"),
        ({"policies": ("moderate", "nothing.yaml")}, "nothing.yaml"),
        ({"policies": (), "folder": None}, "there is no policy to offer"),
        ({"folder": "nowhere"}, "expected a folder of policies"),
        ({"policies": ("moderate",), "folder": None}, "--state .*: without --policies FOLDER there are no revisions"),
        ({"tokens": "{policies: [familia]}"}, "a token names the policy 'familia'"),
        ({"tokens": "{operator: yes, operators: yes}"}, "operators"),
    ],
)
def test_what_is_not_right_is_refused_before_the_model_is_loaded(settings, tmp_path, change, words):
    if "tokens" in change:
        entry = change["tokens"].replace("{", f"{{name: one, sha256: {'ab' * 32}, ")
        file = tmp_path / "tokens.yaml"
        file.write_text(f"apiVersion: safeflux/v1\nkind: Tokens\ntokens: [{entry}]\n")
        change = {"tokens": file}
    if change.get("folder"):
        change = {"folder": tmp_path / change["folder"]}
    wrong = ServiceSettings(**{**vars(settings), **change})
    with pytest.raises(SafeFluxError, match=words):
        Service.open(wrong, operator=TOKEN)
    assert not settings.audit.exists()


def test_a_new_token_opens_what_its_line_says(tmp_path):
    token, line = new_token("kids-app")
    file = tmp_path / "tokens.yaml"
    file.write_text(f"apiVersion: safeflux/v1\nkind: Tokens\ntokens:\n{line}\n")
    access = Access(read_tokens(file))
    caller = access.caller(f"Bearer {token}")
    assert (caller.name, caller.policies, caller.is_operator) == ("kids-app", ("strict",), False)
    assert token not in file.read_text()
    assert not access.has_operator
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ConfigError, match="another token has this name already"):
        read_tokens(file)
    with pytest.raises(ConfigError, match="at least 16 characters"):
        Access((), "short")
