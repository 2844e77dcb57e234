"""The HTTP edge: the documented REST routes over ``core``, off unless the setting ``listen.http`` names an address.

`app.make_app` makes the application, `server.serving` runs it. docs/http.md describes the routes. Only what counts
connections and compares names is imported with the package: the frameworks take long to load, and most daemons serve no
HTTP.
"""

from enclaved.gateway.hosts import Foreign, Hosts
from enclaved.gateway.listener import ADDRESS_SHARE, Bounded, connections_possible

__all__ = ["ADDRESS_SHARE", "Bounded", "Foreign", "Hosts", "connections_possible"]
