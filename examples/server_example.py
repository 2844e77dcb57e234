"""Serves sandboxes over HTTP, for programs that have no Docker of their own. Ctrl-C stops the server.

    python examples/server_example.py [PORT]

While it runs, http://127.0.0.1:8000/docs describes the routes, and a program in another terminal uses it like this:

    import asyncio
    from ms_enclave.sandbox.manager import HttpSandboxManager

    async def main():
        async with HttpSandboxManager(base_url='http://127.0.0.1:8000') as manager:
            result = await manager.execute_tool_in_pool('python_executor', {'code': 'print(6 * 7)'})
            print(result.output)

    asyncio.run(main())
"""

import sys

from ms_enclave.sandbox import create_server
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxManagerConfig

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 8000


def main() -> None:
    # Two sandboxes wait for calls to /pool/execute; others are made when clients ask for them.
    pool = DockerSandboxConfig(memory_limit="256m", tools_config=["python_executor", "shell_executor"])
    server = create_server(SandboxManagerConfig(pool_size=2, sandbox_config=pool))
    server.run(host="127.0.0.1", port=PORT)


if __name__ == "__main__":
    main()
