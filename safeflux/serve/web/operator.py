"""The operator's routes: policies in force, evidence, and changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from safeflux.errors import AuditError, SafeFluxError
from safeflux.evidence.audit import read_last, verify_log
from safeflux.pages.pictures import png_uri
from safeflux.plan.facts import plan_facts
from safeflux.plan.resolve import Plan
from safeflux.policy.diff import as_dict, compare
from safeflux.policy.load import Policy, PolicyFileError
from safeflux.serve.access import Caller
from safeflux.serve.desk import BusyError, StaleError
from safeflux.serve.folder import file_of
from safeflux.serve.problems import ProblemError
from safeflux.serve.revisions import Revision
from safeflux.serve.service import Service
from safeflux.serve.trial import trial_prompts
from safeflux.serve.web.wanted import wanted_of

_T = TypeVar("_T")
_LINES = 20
"""Lines of the log to return."""
_PROMPTS = 6
"""Most prompts of a preview."""

Authorization = Annotated[str, Header()]
PolicyName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
IfMatch = Annotated[str | None, Header(pattern=r'^"?\d{1,9}"?$')]


class PreviewRequest(BaseModel):
    """A policy that is not in force yet, and what to draw with it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(description="YAML.")
    prompts: list[str] | None = Field(None, max_length=_PROMPTS, description="Without, one for each category.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the first prompt's noise; the next one has the next.")


def operator_routes(service: Service) -> APIRouter:
    """The routes of a service's operator."""
    routes = APIRouter(dependencies=[Depends(_check_query)])
    desk, access, engine = service.desk, service.access, service.engine
    looking = anyio.CapacityLimiter(2)

    async def run(body: Callable[[], _T]) -> _T:
        with _problems():
            return await anyio.to_thread.run_sync(body, limiter=looking)

    def writer(authorization: str) -> Caller:
        caller = access.operator(authorization)
        if not service.takes_writes:
            raise ProblemError(
                409, "this service has no folder of policies: start it with --policies FOLDER", code="fixed"
            )
        return caller

    @routes.get("/policies")
    async def policies(authorization: Authorization = "") -> dict[str, Any]:
        """The policies in force, and since when; for other tokens only the policies that they allow."""
        caller = access.caller(authorization)
        now = desk.current
        facts: dict[str, Any] = {
            "model": engine.profile.name,
            "default": service.choose(caller, None),
            "policies": [_policy(now, name, desk.fixed) for name in now.policies if caller.may(name)],
        }
        if caller.is_operator:
            plans = engine.pool.plans
            facts |= {"revision": now.number, "by": now.by, "older": desk.num_older, "fault": desk.fault}
            facts |= {"writes": service.takes_writes, "health": service.health.as_dict(), "in_force": _now(service)}
            for row in facts["policies"]:
                row["plan"] = plan_facts(plans[row["name"]]) if row["name"] in plans else None
        return facts

    @routes.get("/policies/{name}")
    async def policy(name: PolicyName, authorization: Authorization = "") -> dict[str, Any]:
        """One policy, with its text if it is in the folder."""
        access.operator(authorization)
        now = desk.current
        if name not in now.policies:
            raise ProblemError(404, f"no policy {name!r} here", code="policy")
        text = now.texts.get(file_of(name), b"").decode(errors="replace")
        return {**_policy(now, name, desk.fixed), "text": text}

    @routes.put("/policies/{name}")
    async def put(
        request: Request,
        name: PolicyName,
        authorization: Authorization = "",
        if_match: IfMatch = None,
        dry_run: Annotated[bool, Query()] = False,
    ) -> dict[str, Any]:
        """Put the policy in the body (YAML) in force; with `dry_run`, only check and plan it."""
        caller, text = writer(authorization), await request.body()
        if dry_run:
            return _planned(desk.current, name, *await run(lambda: desk.check(name, text)))
        made = await run(lambda: desk.put(name, text, caller.name, revision=_number(if_match)))
        return _revision(made)

    @routes.delete("/policies/{name}")
    async def delete(name: PolicyName, authorization: Authorization = "", if_match: IfMatch = None) -> dict[str, Any]:
        """Withdraw a policy."""
        caller = writer(authorization)
        return _revision(await run(lambda: desk.delete(name, caller.name, revision=_number(if_match))))

    @routes.post("/rollback")
    async def roll_back(authorization: Authorization = "", if_match: IfMatch = None) -> dict[str, Any]:
        """Go back to the policies before the last change."""
        caller = writer(authorization)
        return _revision(await run(lambda: desk.roll_back(caller.name, revision=_number(if_match))))

    @routes.post("/policies/{name}/preview")
    async def preview(name: PolicyName, body: PreviewRequest, authorization: Authorization = "") -> dict[str, Any]:
        """Draw the same prompts from the same noises under the policy of this name and under its replacement."""
        caller, text = writer(authorization), body.text.encode(errors="replace")

        def draw() -> dict[str, Any]:
            prompts = body.prompts
            if prompts is None:
                prompts = trial_prompts(engine.profile, desk.check(name, text)[1])[:_PROMPTS]
            wanted = [wanted_of(service, prompt, seed=body.seed + k) for k, prompt in enumerate(prompts)]
            pairs, planned = desk.try_out(name, text, wanted, caller.name)
            rows = [
                {
                    "prompt": one.prompt,
                    "seed": one.seeds[0],
                    "before": png_uri(before.pictures[0]),
                    "after": png_uri(after.pictures[0]),
                }
                for one, (before, after) in zip(wanted, pairs, strict=True)
            ]
            return {**_planned(desk.current, name, *planned), "pictures": rows}

        return await run(draw)

    @routes.get("/receipt")
    async def receipt(policy: Annotated[str | None, Query()] = None, authorization: Authorization = "") -> Any:
        """A receipt; for a policy that is not in force, after switching to it."""
        caller = access.operator(authorization)
        name = service.choose(caller, policy) if policy else None
        return await run(lambda: engine.receipt(name))

    @routes.get("/audit")
    async def audit(authorization: Authorization = "") -> dict[str, Any]:
        """The state of the log's chain, its head, and its last lines."""
        access.operator(authorization)
        if desk.audit is None:
            raise ProblemError(404, "this service writes no audit log: start it with --audit FILE", code="no_log")
        path = desk.audit.path
        return await run(lambda: {**vars(verify_log(path)), "last": read_last(path, _LINES)})

    return routes


def _check_query(request: Request) -> None:
    """Refuse a parameter that a change would not heed: with `?dryrun=1` it would be put in force."""
    if request.method == "GET":
        return
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    if len(set(given)) < len(given) or not set(given) <= set(known):
        wanted = f"nothing but {', '.join(known)}, once" if known else "none"
        raise ProblemError(422, f"the query: expected {wanted}; nothing was changed", code="invalid")


@contextmanager
def _problems() -> Iterator[None]:
    """Turn our errors into responses."""
    try:
        yield
    except PolicyFileError as error:
        raise ProblemError(422, str(error), code="policy_invalid") from error
    except StaleError as error:
        raise ProblemError(412, str(error), code="stale") from error
    except BusyError as error:
        raise ProblemError(409, str(error), code="busy", retry=10) from error
    except AuditError as error:
        raise ProblemError(500, str(error), code="log") from error
    except SafeFluxError as error:
        status = 404 if isinstance(error.__cause__, FileNotFoundError) else 409
        raise ProblemError(status, str(error), code="refused") from error


def _number(if_match: str | None) -> int | None:
    return None if if_match is None else int(if_match.strip('"'))


def _now(service: Service) -> str:
    """The name of the policy in force in the pool."""
    try:
        return service.engine.pool.in_force
    except SafeFluxError:
        return ""


def _policy(now: Revision, name: str, fixed: Any) -> dict[str, Any]:
    policy = now.policies[name]
    return {
        "name": name,
        "description": policy.description,
        "sha256": policy.digest,
        "since": now.since[name].isoformat(timespec="seconds"),
        "fixed": name in fixed,
    }


def _revision(made: Revision) -> dict[str, Any]:
    return {"revision": made.number, "by": made.by, "policies": made.digests}


def _planned(now: Revision, name: str, policy: Policy, plan: Plan) -> dict[str, Any]:
    """The plan of a policy, and how it differs from the present one."""
    old = now.policies.get(name)
    changes = as_dict(compare(old, policy)) if old else None
    return {"name": name, "revision": now.number, "plan": plan_facts(plan), "changes": changes}
