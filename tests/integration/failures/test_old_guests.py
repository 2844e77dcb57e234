"""An upgrade: the next daemon takes up a container whose guest is of the protocol version before."""

from __future__ import annotations

import pytest
from grpc import StatusCode, aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.failures.ground import Ground
from tests.integration.failures.test_killed_daemons import SLOW, at, create, follow, killed, start, stopped
from tests.service.daemons import python
from tests.service.old_guests import old_guest


async def test_a_guest_of_the_version_before_is_adopted_with_what_runs_in_it(ground: Ground) -> None:
    first = await ground.daemon()
    (guest_file,) = (ground.folder / "e" / "guest").iterdir()
    ours = guest_file.read_bytes()
    guest_file.unlink()
    guest_file.write_bytes(old_guest(1))
    guest_file.chmod(0o444)
    async with at(first) as stubs:
        await create(stubs)
        await stubs.executions.Run(pb.RunRequest(spec=python("answer = 6 * 7")))
        head = await start(stubs, python(SLOW, execution_id="run"), 50_000)
        before = ground.containers()
        await killed(first)
    guest_file.unlink()
    second = await ground.daemon()
    assert guest_file.read_bytes() == ours
    async with at(second) as stubs:
        tail, finished = await follow(stubs, "run", len(head))
        assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 0)
        assert (head + tail).count(b"\n") == 4000
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print(answer)")))
        assert answer.stdout == b"42\n"
        with pytest.raises(aio.AioRpcError, match="make a new sandbox") as caught:
            await stubs.sandboxes.PauseSandbox(sandbox_pb.PauseSandboxRequest(sandbox_id="box"))
        assert caught.value.code() is StatusCode.FAILED_PRECONDITION
    assert ground.containers() == before
    await stopped(second, ground)
