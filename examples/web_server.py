"""Lets a sandbox serve a directory of this machine to this machine, and to nobody else.

    python examples/web_server.py

A daemon of your own grants what lies below the directory in which you start it. The directory is mounted read-only,
the port is published on the loopback address, and the server is user code like any other: it reaches the outside, but
neither this machine nor its networks.
"""

import asyncio
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

SERVER = "python3 -m http.server 8080 --directory /pages"
KNOCK = """
import socket
with open("/proc/net/route") as routes:
    gateway = socket.inet_ntoa(bytes.fromhex(list(routes)[1].split()[2])[::-1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
        probe.sendto(b"knock", (gateway, 9))
    except PermissionError:
        print("closed")
"""


def fetch(url: str) -> str:
    """Gets a page."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


async def page_at(url: str) -> str:
    """Gets a page of a server that may not listen yet."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await asyncio.to_thread(fetch, url)
            except (urllib.error.URLError, ConnectionError):
                await asyncio.sleep(0.1)


async def main() -> None:
    """Serves one page, fetches it, and looks what else the server could reach."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        pages = Path(folder).resolve()
        pages.chmod(0o755)  # programs in a sandbox are somebody else
        (pages / "hello.txt").write_text("Hello from this machine\n")
        config = DockerSandboxConfig(
            memory_limit="256m",
            network_enabled=True,
            ports={"8080/tcp": None},
            volumes={str(pages): {"bind": "/pages", "mode": "ro"}},
            command=SERVER,
        )
        async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
            address, port = sandbox.get_info().metadata["ports"]["8080/tcp"]
            print("it is published on", address)
            print(await page_at(f"http://{address}:{port}/hello.txt"), end="")
            result = await sandbox.execute_tool("python_executor", {"code": KNOCK})
            print("this machine, seen from the server:", result.output.strip())


if __name__ == "__main__":
    asyncio.run(main())
