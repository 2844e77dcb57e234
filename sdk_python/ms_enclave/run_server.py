"""Runs the HTTP server: ``python -m ms_enclave.run_server``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.server import create_server
from ms_enclave.sandbox.server.server import LOG_LEVELS

API_KEY_VARIABLE: Final = "MS_ENCLAVE_API_KEY"

_EPILOG = f"""\
The key that requests must have is taken from the environment variable {API_KEY_VARIABLE}; without one, whoever
reaches the address may run code, so it has to be a loopback address then.

Examples:
  python -m ms_enclave.run_server
  python -m ms_enclave.run_server --port 9000 --pool-size 4
  {API_KEY_VARIABLE}=secret python -m ms_enclave.run_server --host 0.0.0.0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C. Returns the exit code: 0, or 1 if the server could not be started or died."""
    parser = argparse.ArgumentParser(
        prog="python -m ms_enclave.run_server",
        description="Serves sandboxes over HTTP until Ctrl-C; then removes them all.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen at (default: %(default)s)")
    parser.add_argument("--pool-size", type=int, default=0, help="sandboxes to keep ready (default: none)")
    parser.add_argument("--cleanup-interval", type=int, default=300, help="accepted, without effect")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="warning", help="(default: %(default)s)")
    parser.add_argument("--ssl-certfile", help="certificate and its chain (PEM), for other than loopback addresses")
    parser.add_argument("--ssl-keyfile", help="private key of the certificate (PEM)")
    parser.add_argument("--behind-proxy", action="store_true", help="a proxy before it ends TLS")
    options = parser.parse_args(arguments)
    try:
        server = create_server(
            cleanup_interval=options.cleanup_interval,
            api_key=os.environ.get(API_KEY_VARIABLE) or None,
            pool_size=options.pool_size,
        )
        server.run(
            options.host,
            options.port,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            behind_proxy=options.behind_proxy,
            log_level=options.log_level,
        )
    except (EnclaveError, ValueError) as error:
        print(f"ms_enclave.run_server: {str(error).replace('an api_key', API_KEY_VARIABLE)}", file=sys.stderr)
        return 1
    return 0


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
