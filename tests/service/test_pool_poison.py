"""Members that a call has poisoned: none of it reaches the next, and the leases say what was done about it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from enclaved.core.policy import PolicyLimits, built_in_rules
from enclaved.core.pool import Pools
from enclaved.errors import InvalidRequest, LimitReached, PolicyDenied, PoolBusy
from enclaved.model import (
    ClaimWish,
    Lease,
    LeaseKind,
    LeaseOutcome,
    MemberState,
    PoolChange,
    PoolPlan,
    ResetProof,
    SandboxRequest,
    SandboxState,
    SandboxUpdate,
    ToolCall,
    Verdict,
)
from tests.service.guest.laboratory import PATIENCE_S, Box, Laboratory, ended, laboratory, printed, until
from tests.service.test_pool import parts_of

DAEMONISED = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('alive', 'w').close()
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists('alive'):  # it lives on only once it has said so
    time.sleep(0.001)
"""
RESPAWNING = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    while True:  # each one is gone before anybody can look at it
        if os.fork():
            os._exit(0)
        os.setsid()
"""
SHARED_SEGMENT = """
import ctypes
print(ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0)
"""
MOUNTING = """
import ctypes, os
library = ctypes.CDLL(None, use_errno=True)
library.unshare(0x10000000 | 0x00020000)
print(library.mount(b"none", b"/tmp", b"tmpfs", 0, None))
"""
POISONS = {
    "a_daemonised_process": ("python_executor", {"code": DAEMONISED}),
    "processes_that_come_again_and_again": ("python_executor", {"code": RESPAWNING}),
    "names_that_look_like_ours": ("shell_executor", {"command": "mkdir .wiped-1-1; touch -- -rf .wiped-2 $'a\\nb'"}),
    "a_deep_tree": ("shell_executor", {"command": "for i in $(seq 300); do mkdir d; cd d; touch f; done"}),
    "closed_directories": ("shell_executor", {"command": "mkdir -p a/b/c; touch a/b/c/f; chmod -R 0 a; chmod 0 ."}),
    "a_shared_segment": ("python_executor", {"code": SHARED_SEGMENT}),
    "an_attempt_to_mount": ("python_executor", {"code": MOUNTING}),
    "a_full_working_directory": ("shell_executor", {"command": "head -c 20M /dev/zero > big; seq 2000 | xargs touch"}),
    "posix_shared_memory": ("shell_executor", {"command": "echo x > /dev/shm/left-$$; echo x > /tmp/left-$$"}),
    "a_context_with_threads": (
        "python_executor",
        {"code": "import threading, time\nfor _ in range(8): threading.Thread(target=time.sleep, args=(600,)).start()"},
    ),
}


@pytest.fixture
async def lab() -> AsyncIterator[Laboratory]:
    async with laboratory() as made:
        yield made


@pytest.fixture
async def pools(lab: Laboratory) -> AsyncIterator[Pools]:
    made = Pools(parts_of(lab))
    yield made
    made.close()


async def run(pools: Pools, tool: str, parameters: dict[str, Any], **call: Any) -> Any:
    _, result = await pools.run("p", ToolCall("", tool, parameters, **call), PATIENCE_S)
    return result


async def shell(pools: Pools, command: str) -> str:
    return printed(await run(pools, "shell_executor", {"command": command}))


async def python(pools: Pools, code: str) -> str:
    return printed(await run(pools, "python_executor", {"code": code}))


async def pool_of(pools: Pools, size: int = 1, **plan: Any) -> list[str]:
    return list((await pools.initialize(PoolPlan(size, **plan), pool_id="p")).sandbox_ids)


async def all_idle(pools: Pools, size: int = 1) -> None:
    def idle() -> bool:
        members = pools.get("p").members
        return len(members) == size and all(member.state is MemberState.IDLE for member in members)

    await until(idle)


def newest(pools: Pools) -> Lease:
    return pools.leases("p", page_size=1).leases[0]


# -- poison


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
async def test_a_poisoned_member_is_as_new_for_the_next_call(pools: Pools, poison: tuple[str, dict[str, Any]]) -> None:
    await pool_of(pools)
    await run(pools, *poison)
    assert await shell(pools, "ls -A .; stat -c %a .") == "700\n"
    await all_idle(pools)
    for lease in pools.leases("p").leases:
        assert lease.outcome is LeaseOutcome.CLEAN
        assert lease.proof is not None
        assert lease.proof.leftovers == ()


async def test_the_lease_says_what_a_call_left_and_that_nothing_is_left_of_it(pools: Pools) -> None:
    (member,) = await pool_of(pools)
    await run(pools, "python_executor", {"code": DAEMONISED}, execution_id="first")
    await all_idle(pools)
    lease = newest(pools)
    assert (lease.kind, lease.execution_id, lease.tool) == (LeaseKind.RUN, "first", "python_executor")
    assert (lease.sandbox_id, lease.slot, lease.verdict) == (member, 0, Verdict.EXITED)
    assert lease.proof is not None
    assert lease.proof.processes_killed >= 1
    assert lease.proof.files_removed >= 1
    assert lease.proof.leftovers == ()
    assert lease.reset_s > 0
    assert lease.held_s > 0


async def test_a_member_in_which_something_is_left_is_never_handed_out(
    lab: Laboratory, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool_of(pools)
    old = lab.sandboxes.record(pools.get("p").members[0].sandbox_id)
    monkeypatch.setattr(ResetProof, "leftovers", property(lambda proof: ("1 files",) if old.id else ()))
    task = asyncio.create_task(run(pools, "shell_executor", {"command": "true"}))
    await task
    await until(lambda: bool(pools.leases("p").leases))
    assert newest(pools).outcome is LeaseOutcome.REPLACED
    assert "1 files" in newest(pools).reason
    await until(lambda: old.is_forgotten or old.state is not SandboxState.RUNNING)
    monkeypatch.undo()
    assert await shell(pools, "echo new") == "new\n"


async def test_a_member_whose_guest_is_killed_while_it_is_free_is_replaced_before_anybody_asks(
    lab: Laboratory, pools: Pools
) -> None:
    (member,) = await pool_of(pools)
    old = lab.sandboxes.record(member)
    os.kill(Box(lab, member).guest_pid(), signal.SIGKILL)
    await until(lambda: pools.get("p").counters.replaced == 1)
    await all_idle(pools)
    assert lab.sandboxes.record(member) is not old
    assert await shell(pools, "echo new") == "new\n"


async def test_a_member_that_is_stopped_behind_our_back_is_replaced_before_anybody_asks(
    lab: Laboratory, pools: Pools
) -> None:
    (member,) = await pool_of(pools)
    await lab.sandboxes.stop(member)
    await until(lambda: pools.get("p").counters.replaced == 1)
    await all_idle(pools)


# -- warm contexts


async def test_modules_are_loaded_before_a_member_is_lent_and_again_after_each_reset(pools: Pools) -> None:
    await pool_of(pools, preload=("json", "xml.dom"))
    look = "import sys; print('xml.dom' in sys.modules, {'names', 'json', 'y'} & set(globals())); y = 1"
    assert [await python(pools, look) for _ in range(2)] == ["True set()\n"] * 2


async def test_other_contexts_are_open_when_a_member_is_lent(pools: Pools) -> None:
    await pool_of(pools, contexts=("default", "other"), preload=("csv",))
    for _ in range(2):
        code = "import sys; print('csv' in sys.modules)"
        assert printed(await run(pools, "python_executor", {"code": code}, context="other")) == "True\n"


async def test_a_module_that_the_image_lacks_is_refused_by_name_and_nothing_is_left(
    lab: Laboratory, pools: Pools
) -> None:
    with pytest.raises(InvalidRequest, match=r"preload: .* cannot import 'no_such_module' \(ModuleNotFoundError"):
        await pool_of(pools, 2, preload=("json", "no_such_module"))
    assert lab.sandboxes.list().sandboxes == ()


# -- claims


async def test_a_claimed_member_is_an_ordinary_sandbox_and_its_slot_is_filled(lab: Laboratory, pools: Pools) -> None:
    members = await pool_of(pools, preload=("json",), labels={"of": "pool"})
    wish = ClaimWish(SandboxUpdate(ttl_s=600.0, labels={"mine": "1"}))
    claimed = await pools.claim("p", wish)
    assert claimed.sandbox.id == members[0]
    assert dict(claimed.sandbox.labels) == {"mine": "1"}
    assert pools.role(members[0]) is None
    assert printed(await Box(lab, members[0]).python("import sys; print('json' in sys.modules)")) == "True\n"
    await all_idle(pools)
    assert pools.get("p").members[0].sandbox_id != members[0]
    lease = newest(pools)
    assert (lease.kind, lease.outcome, lease.sandbox_id) == (LeaseKind.CLAIM, LeaseOutcome.CLAIMED, members[0])
    await pools.delete("p")
    assert lab.sandboxes.get(members[0]).state is SandboxState.RUNNING


async def test_many_who_claim_at_once_get_a_sandbox_each(pools: Pools) -> None:
    await pool_of(pools, 2)
    claims = await asyncio.gather(*(pools.claim("p", ClaimWish(), PATIENCE_S) for _ in range(5)))
    assert len({claimed.sandbox.id for claimed in claims}) == 5


async def test_a_claim_that_is_sent_again_gets_the_same_sandbox(pools: Pools) -> None:
    await pool_of(pools, 2)
    wish = ClaimWish(SandboxUpdate(labels={"a": "b"}), "once")
    claims = await asyncio.gather(*(pools.claim("p", wish, PATIENCE_S) for _ in range(3)))
    assert len({claimed.sandbox.id for claimed in claims}) == 1
    with pytest.raises(InvalidRequest, match="request_id"):
        await pools.claim("p", ClaimWish(SandboxUpdate(labels={"a": "c"}), "once"))


async def test_a_claim_with_limits_that_policy_does_not_grant_leaves_the_member_in_the_pool(pools: Pools) -> None:
    (member,) = await pool_of(pools)
    with pytest.raises(PolicyDenied, match="memory_limit_bytes"):
        await pools.claim("p", ClaimWish(SandboxUpdate(memory_limit_bytes=2**45)))
    await all_idle(pools)
    assert [each.sandbox_id for each in pools.get("p").members] == [member]
    assert pools.role(member) == "idle"


async def test_a_claim_of_a_busy_pool_waits_in_the_line_of_all(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools)
    slow = asyncio.create_task(run(pools, "shell_executor", {"command": "sleep 600"}))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    with pytest.raises(PoolBusy):
        await pools.claim("p", ClaimWish(), 0.01)
    claim = asyncio.create_task(pools.claim("p", ClaimWish(), PATIENCE_S))
    await until(lambda: pools.get("p").waiting == 1)
    slow.cancel()
    assert (await claim).sandbox.state is SandboxState.RUNNING


# -- more, fewer, younger


async def test_a_pool_grows_and_shrinks_while_it_serves(lab: Laboratory, pools: Pools) -> None:
    members = await pool_of(pools)
    slow = asyncio.create_task(run(pools, "shell_executor", {"command": "sleep 0.5; echo whole"}))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    await pools.update("p", PoolChange(size=3))
    await until(lambda: sum(member.state is MemberState.IDLE for member in pools.get("p").members) == 2)
    status = await pools.update("p", PoolChange(size=1))
    assert len(status.members) == 1
    assert printed(await slow) == "whole\n"
    await all_idle(pools)
    await until(lambda: len(lab.sandboxes.list().sandboxes) == 1)
    assert pools.get("p").members[0].sandbox_id in (members[0], *[s.id for s in lab.sandboxes.list().sandboxes])


async def test_a_pool_that_would_be_larger_than_the_daemon_may_be_stays_as_it_is(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools)
    lab.sandboxes.policy.rules = built_in_rules(PolicyLimits(sandboxes_max=2))
    with pytest.raises((PolicyDenied, LimitReached)):
        await pools.update("p", PoolChange(size=3))
    with pytest.raises(InvalidRequest, match="size"):
        await pools.update("p", PoolChange(size=0))
    assert pools.get("p").plan.size == 1


async def test_an_old_member_is_renewed_ahead_of_demand_and_the_pool_is_never_empty(
    lab: Laboratory, pools: Pools
) -> None:
    (member,) = await pool_of(pools)
    record = lab.sandboxes.record(member)
    record.born -= record.spec.ttl_s * 0.9
    least = 1

    def renewed() -> bool:
        nonlocal least
        least = min(least, sum(each.state is MemberState.IDLE for each in pools.get("p").members))
        return record.is_forgotten

    await until(renewed)
    assert least == 1
    assert pools.get("p").counters.replaced == 1
    assert await shell(pools, "echo young") == "young\n"


async def test_an_old_member_that_is_always_busy_is_renewed_when_its_call_ends(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools)
    slow = asyncio.create_task(run(pools, "shell_executor", {"command": "read x < /proc/self/stat; sleep 600"}))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    record = lab.sandboxes.record(member)
    record.born -= record.spec.ttl_s * 0.9
    slot = pools._pools["p"].members.slots[0]
    await until(lambda: slot.successor is not None)
    slow.cancel()
    await until(lambda: record.is_forgotten)
    await all_idle(pools)
    assert newest(pools).outcome is LeaseOutcome.REPLACED


async def test_the_members_of_a_pool_are_kept_by_what_it_is_to_be(pools: Pools) -> None:
    pools.define({"p": PoolPlan(2)})
    await all_idle(pools, 2)
    before = {member.sandbox_id for member in pools.get("p").members}
    pools.define({"p": PoolPlan(2, SandboxRequest(pids_limit=50))})
    await until(lambda: pools.get("p").counters.replaced == 2)
    await all_idle(pools, 2)
    assert await shell(pools, "echo $((1 + 1))") == "2\n"
    assert len(before) == 2
    pools.define({})
    await until(lambda: pools.list() == ())


async def test_leases_are_listed_in_pages_newest_first(pools: Pools) -> None:
    await pool_of(pools)
    for _ in range(3):
        ended(await run(pools, "shell_executor", {"command": "true"}))
    await all_idle(pools)
    first = pools.leases("p", page_size=2)
    second = pools.leases("p", page_size=2, page_token=first.next_page_token)
    assert [lease.number for page in (first, second) for lease in page.leases] == [3, 2, 1]
    assert second.next_page_token == ""
    with pytest.raises(InvalidRequest, match="page_token"):
        pools.leases("p", page_token="x")
