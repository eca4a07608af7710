"""Error responses in both APIs of the service: its own, and OpenAI's."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from safeflux.serve.problems import ProblemError

OPENAI = "/v1/"
"""Prefix of the paths of OpenAI's API."""
_NO_OBJECT = "model_attributes_type"
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
    faults = [
        (".".join(map(str, each["loc"][1:])) or "the body", _words(each["type"], each["msg"]))
        for each in error.errors()
    ]
    message = "; ".join(f"{place}: {what}" for place, what in faults)
    return ProblemError(422, message, code="invalid", param=faults[0][0])


def _words(kind: str, message: str) -> str:
    return "expected a JSON object, with `content-type: application/json`" if kind == _NO_OBJECT else message


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
