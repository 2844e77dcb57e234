"""The application: the documented routes, their description, and the guard in front of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from ms_enclave import __version__
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from enclaved.errors import EnclaveError
from enclaved.gateway import described, page
from enclaved.gateway.guard import Entrance, Gate, Guard
from enclaved.gateway.refusals import Refused, answer_to
from enclaved.gateway.routes import Core, Routes
from enclaved.metrics import Metrics


def make_app(
    core: Core, *, entrance: Entrance, metrics: Metrics, gate: Gate, archive_bytes_max: int = 64 * 1024 * 1024
) -> ASGIApp:
    """Makes the ASGI application. Call it in the event loop that will run it."""
    return Guard(make_api(core, archive_bytes_max), entrance=entrance, metrics=metrics, gate=gate)


def make_api(core: Core, archive_bytes_max: int) -> FastAPI:
    """Makes the application without its guard."""
    app = _Api(
        title="ms-enclave",
        version=__version__,
        description=described.ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    Routes(core, archive_bytes_max).add_to(app)

    async def docs() -> HTMLResponse:
        return HTMLResponse(page.render(app.openapi()), headers={"Content-Security-Policy": page.POLICY})

    app.add_api_route("/docs", docs, include_in_schema=False)
    for cls in (EnclaveError, Refused, ClientDisconnect, Exception):
        app.add_exception_handler(cls, _answer)
    return app


class _Api(FastAPI):
    """Adds to the description what FastAPI does not see: the keys that the guard asks for."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            found = super().openapi()
            found.setdefault("components", {})["securitySchemes"] = described.SECURITY
            found["security"] = [{}, *({name: []} for name in described.SECURITY)]
        return super().openapi()


async def _answer(request: Request, error: Exception) -> Response:
    return answer_to(error)
