"""The operator's page: files that refer to nothing outside the service."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

_TYPES = {
    "page.html": "text/html",
    "style.css": "text/css",
    "console.js": "text/javascript",
    "view.js": "text/javascript",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> APIRouter:
    """The page's routes. Anyone may load the page; the data needs the operator's token."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def start() -> RedirectResponse:
        return RedirectResponse("/console/page.html")

    @routes.get("/console")
    async def console() -> RedirectResponse:
        return RedirectResponse("/console/page.html")

    @routes.get("/console/{name}")
    async def file(name: str) -> Response:
        if name not in _TYPES:
            return Response("no such file", 404, media_type="text/plain")
        data = files("safeflux.serve.web").joinpath("console", name).read_bytes()
        return Response(data, media_type=_TYPES[name], headers=_HEADERS)

    return routes
