"""The HTTP edge: the documented REST routes over ``core``, off unless the setting ``listen.http`` names an address.

`make_app` makes the application, `serving` runs it. docs/http.md describes the routes.
"""

from enclaved.gateway.app import make_app
from enclaved.gateway.guard import Entrance
from enclaved.gateway.listener import Bounded, connections_possible
from enclaved.gateway.routes import Core
from enclaved.gateway.server import serving

__all__ = ["Bounded", "Core", "Entrance", "connections_possible", "make_app", "serving"]
