"""The recommended layout: an engine for sandboxes alone, with user namespaces and live-restore. About 25 s."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.engine.private import FIRST_UID, private_engine
from tests.integration.engine.scenarios import PATIENCE_S, Outcome, Site, site, within

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

LOOK = """
import json, os, signal
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    os.kill(1, signal.SIGKILL)
    killed = "yes"
except OSError as error:
    killed = error.strerror
try:
    os.setuid(0)
    became = "root"
except OSError as error:
    became = error.strerror
with open("written", "w") as file:
    file.write("x")
print(json.dumps({
    "uid": os.getuid(),
    "groups": os.getgroups(),
    "caps": status["CapEff"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "nnp": status["NoNewPrivs"].strip(),
    "map": open("/proc/self/uid_map").read().split(),
    "killed": killed,
    "became": became,
    "owner": os.stat("written").st_uid,
}))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(default_image: str) -> AsyncIterator[Site]:
    """A daemon with its usual settings on such an engine."""
    async with private_engine(remapped=True) as engine:
        engine.live_restore = True
        await engine.restart()
        policy = (
            f'[roles.default]\nnetworks = ["none", "bridge"]\nvolumes = [{{path = "{engine.folder}", mode = "rw"}}]\n'
        )
        async with site(engine, policy) as found:
            yield found


async def output(here: Site, name: str, tool: str, **parameters: str) -> str:
    """What a program says."""
    spec = pb.ExecutionSpec(sandbox_id=name, tool=tool, parameters_json=json.dumps(parameters))
    answer = await here.stubs.executions.Run(pb.RunRequest(spec=spec), timeout=PATIENCE_S)
    assert answer.finished.exit_code == 0, answer
    return str(answer.stdout.decode())


async def test_programs_are_as_confined_there_and_nobody_in_them_is_root_on_the_host(here: Site):
    await here.create("looks")
    seen = json.loads(await output(here, "looks", "python_executor", code=LOOK))
    uid = seen.pop("uid")
    assert 10_000 <= uid < 60_000
    assert seen == {
        "groups": [],
        "caps": "0000000000000000",
        "seccomp": "2",
        "nnp": "1",
        "map": ["0", str(FIRST_UID), "65536"],
        "killed": "Operation not permitted",
        "became": "Operation not permitted",
        "owner": uid,
    }
    assert await output(here, "looks", "shell_executor", command="echo here > a; cat a") == "here\n"
    written = {"operation": "write", "file_path": "b", "content": "text"}
    assert await output(here, "looks", "file_operation", **written)
    await here.delete("looks")


async def test_two_sandboxes_there_have_users_of_their_own(here: Site):
    users = set()
    for name in ("one", "two"):
        await here.create(name)
        users.add(await output(here, name, "shell_executor", command="id -u"))
        await here.delete(name)
    assert len(users) == 2


async def test_a_host_directory_is_read_there_and_never_written_to(here: Site):
    shared = here.engine.folder / "shared"
    shared.mkdir(mode=0o755)
    (shared / "text").write_text("hello")
    volume = sandbox_pb.Volume(host_path=str(shared), bind="/shared", mode="ro")
    await here.create("reads", volumes=[volume])
    assert await output(here, "reads", "shell_executor", command="cat /shared/text") == "hello"
    await here.delete("reads")
    volume.mode = "rw"
    os.chown(shared, 1234, 1234)
    with pytest.raises(aio.AioRpcError) as caught:
        await here.create("writes", volumes=[volume])
    assert "this engine maps user ids" in str(caught.value.details())


async def test_a_granted_network_is_filtered_there_too(here: Site):
    await here.create("outside", network="bridge")
    look = "import socket; print([name for _, name in socket.if_nameindex()])"
    interfaces = await output(here, "outside", "python_executor", code=look)
    assert interfaces.startswith("['lo', 'eth")
    await here.delete("outside")


async def test_programs_live_on_without_the_engine_and_without_the_daemon(here: Site):
    outcome = Outcome("")
    await here.make(1)
    (name,) = here.names
    await here.counts_on(name)
    await here.engine.kill()
    assert await here.counts_on(name)
    await here.engine.start()
    assert await here.works(name)
    await here.replace_daemon()
    await within(PATIENCE_S, lambda: here.is_back(name))
    assert await here.works(name)
    assert await here.counts_on(name)
    await here.clear(outcome)
    assert outcome.faults == []
