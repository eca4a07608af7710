"""Answers to what goes wrong, in both dialects of the service: its own, and OpenAI's."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from safeflux.serve.problems import ProblemError

OPENAI = "/v1/"
"""Where the paths of OpenAI's dialect begin."""


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
    """What is wrong and where, without the values, since a prompt may be among them."""
    told = [(".".join(map(str, each["loc"][1:])) or "the body", each["msg"]) for each in error.errors()]
    return ProblemError(422, "; ".join(f"{place}: {what}" for place, what in told), code="invalid", param=told[0][0])


def answer_problems(app: FastAPI) -> None:
    """Have an app answer with the problem's dialect; nothing of a request is repeated but names of its fields."""

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> JSONResponse:
        return _answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, _invalid(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return _answer(request, ProblemError(error.status_code, str(error.detail)))
