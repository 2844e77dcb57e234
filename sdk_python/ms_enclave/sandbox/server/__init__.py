"""The HTTP server: a daemon that serves the documented routes."""

from ms_enclave.sandbox.server.server import SandboxServer, create_server

__all__ = ["SandboxServer", "create_server"]
