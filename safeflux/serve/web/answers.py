"""Error responses in both APIs of the service: its own, and OpenAI's."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from safeflux.policy.validate import pattern_words
from safeflux.serve.problems import ProblemError

OPENAI = "/v1/"
"""Prefix of the paths of OpenAI's API."""
_EXPECTED = {
    "model_attributes_type": "expected a JSON object, with `content-type: application/json`",
    "json_invalid": "not valid JSON ({error})",
    "extra_forbidden": "unknown field",
    "missing": "missing",
    "int_type": "expected a whole number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "literal_error": "expected {expected}",
    "greater_than": "expected a number greater than {gt}",
    "greater_than_equal": "expected a number of at least {ge}",
    "less_than": "expected a number less than {lt}",
    "too_long": "expected at most {max_length}",
}
"""What is said of the kinds of faults that the framework names."""
_UNREADABLE = "the body: cannot be read as JSON; is it nested too deep, or a number too long?"


def _answer(request: Request, problem: ProblemError) -> JSONResponse:
    headers = {} if problem.retry is None else {"retry-after": str(problem.retry)}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if not request.url.path.startswith(OPENAI):
        return JSONResponse({"detail": problem.message, "code": problem.code}, problem.status, headers)
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code or None}
    return JSONResponse({"error": error}, problem.status, headers)


def _invalid(error: RequestValidationError) -> ProblemError:
    """The invalid fields and why, without their values, since a prompt may be among them."""
    faults = [(_place(each["loc"][1:]), _words(each)) for each in error.errors()]
    message = "; ".join(f"{place}: {what}" for place, what in faults)
    return ProblemError(422, message, code="invalid", param=faults[0][0])


def _place(loc: tuple[Any, ...]) -> str:
    if loc and isinstance(loc[0], int):  # where the JSON ends to be any
        return f"the body, character {loc[0]}"
    return ".".join(map(str, loc)) or "the body"


def _words(fault: Any) -> str:
    """What is expected, without the value that was given."""
    kind, facts = fault["type"], fault.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"expected {pattern_words(facts['pattern'])}"
    return _EXPECTED[kind].format(**facts) if kind in _EXPECTED else str(fault["msg"])


def answer_problems(app: FastAPI) -> None:
    """Install the error handlers of an app. Responses repeat nothing of a request but names of fields."""

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> JSONResponse:
        return _answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, _invalid(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # raised by the framework, for what its reader of JSON gives up on
            return _answer(request, ProblemError(400, _UNREADABLE, code="invalid"))
        return _answer(request, ProblemError(error.status_code, str(error.detail)))
