"""The HTTP endpoint for Prometheus and for load balancers: ``/metrics``, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from enclaved.config import Address
from enclaved.core.access import bearers
from enclaved.daemon._errors import StartError
from enclaved.daemon._gates import Gates
from enclaved.errors import PolicyDenied, Unauthenticated, Unavailable
from enclaved.gateway import Bounded, Foreign, Hosts
from enclaved.metrics import CONTENT_TYPE, Metrics

_SHUTDOWN_S = 1.0
CONNECTIONS_MAX: Final = 32
CONNECTION_S: Final = 60.0
"""A connection ends after this time, also one on which nothing was asked: whoever scrapes makes another."""


@asynccontextmanager
async def metrics_endpoint(
    address: Address,
    metrics: Metrics,
    *,
    gates: Gates,
    stopping: Callable[[], bool],
    engine_available: Callable[[], bool],
    hosts: Collection[str] = (),
) -> AsyncIterator[Address]:
    """Serves until the block ends; gives the address with the port that it got. Raises `StartError`.

    A daemon is healthy until it stops, and ready while its engine answers as well. ``hosts`` are names of this server
    beside that of its address.
    """

    known = Hosts((address.host, *hosts))

    async def scrape(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def health(request: web.Request) -> web.Response:
        return web.Response(text="stopping\n", status=503) if stopping() else web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        if stopping() or engine_available():
            return await health(request)
        return web.Response(text="the engine does not answer\n", status=503)

    @web.middleware
    async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        shown = [*headers.getall("X-API-Key", ()), *bearers(headers.getall("Authorization", ()))]
        try:
            known.check(headers.getall("Host", ()), headers.getall("Origin", ()))
            caller = gates.metrics.identify(shown, request.remote or "")
            gates.metrics.check(caller.identity, "Metrics.Scrape" if request.path == "/metrics" else "Health.Check")
        except Foreign as error:
            return web.Response(text=f"{error}\n", status=error.status)
        except Unauthenticated as error:
            return web.Response(text=f"{error}\n", status=401, headers={"WWW-Authenticate": "Bearer"})
        except PolicyDenied as error:
            return web.Response(text=f"{error}\n", status=403)
        except Unavailable as error:
            return web.Response(text=f"{error}\n", status=503)
        return await handler(request)

    app = web.Application(middlewares=[admitted])
    app.add_routes([web.get("/metrics", scrape), web.get("/healthz", health), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            listener = socket.create_server((address.host, address.port), family=family)
            sock = Bounded(listener, CONNECTIONS_MAX, life_s=CONNECTION_S, share=gates.address_share)
            await web.SockSite(runner, sock, ssl_context=gates.metrics_tls).start()
        except OSError as error:
            hint = "choose another address with listen.metrics (--listen-metrics), or none with an empty one"
            why = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(f"cannot serve metrics on {address}: {why}; {hint}") from error
        yield address._replace(port=runner.addresses[0][1])
    finally:
        await runner.cleanup()
