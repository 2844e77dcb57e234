"""Pools: what a caller wants one to be, and how pools, their members and their leases are shown."""

from __future__ import annotations

from typing import Final

from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved import model
from enclaved.services._convert.common import json_text, timestamp
from enclaved.services._convert.sandboxes import sandbox, sandbox_request

_SIMPLE: Final = frozenset(
    field.name
    for field in sandbox_pb.SandboxSpec.DESCRIPTOR.fields
    if not field.is_repeated and field.message_type is None
)
"""Fields of a spec that are one number, text or truth."""
_STATES: Final = {
    model.MemberState.IDLE: pb.PoolMember.STATE_IDLE,
    model.MemberState.BUSY: pb.PoolMember.STATE_BUSY,
    model.MemberState.RESETTING: pb.PoolMember.STATE_RESETTING,
    model.MemberState.REPLACING: pb.PoolMember.STATE_REPLACING,
}
_ORIGINS: Final = {
    model.PoolOrigin.CALLER: pb.Pool.ORIGIN_CALLER,
    model.PoolOrigin.OPERATOR: pb.Pool.ORIGIN_OPERATOR,
}
_KINDS: Final = {model.LeaseKind.RUN: pb.Lease.KIND_RUN, model.LeaseKind.CLAIM: pb.Lease.KIND_CLAIM}
_OUTCOMES: Final = {
    model.LeaseOutcome.CLEAN: pb.Lease.OUTCOME_CLEAN,
    model.LeaseOutcome.REPLACED: pb.Lease.OUTCOME_REPLACED,
    model.LeaseOutcome.CLAIMED: pb.Lease.OUTCOME_CLAIMED,
}


def pool_plan(request: pb.InitializePoolRequest) -> model.PoolPlan:
    """Reads what a pool is to be."""
    options = request.options
    return model.PoolPlan(
        size=request.size,
        request=sandbox_request(request.spec),
        labels=dict(request.labels),
        contexts=tuple(options.contexts),
        preload=tuple(options.preload),
        member_age_max_s=options.member_age_max_s if options.HasField("member_age_max_s") else None,
        refill_per_s=options.refill_per_s if options.HasField("refill_per_s") else model.POOL_REFILL_PER_S,
    )


def pool_change(request: pb.UpdatePoolRequest) -> model.PoolChange:
    """Reads what is to change of a pool; a field that is not set becomes ``None``."""
    return model.PoolChange(
        size=request.size if request.HasField("size") else None,
        member_age_max_s=request.member_age_max_s if request.HasField("member_age_max_s") else None,
        refill_per_s=request.refill_per_s if request.HasField("refill_per_s") else None,
    )


def claim_wish(request: pb.ClaimRequest) -> model.ClaimWish:
    """Reads what a caller wants to claim."""
    change = model.SandboxUpdate(
        ttl_s=request.ttl_s if request.HasField("ttl_s") else None,
        labels=dict(request.labels),
        memory_limit_bytes=request.memory_limit_bytes if request.HasField("memory_limit_bytes") else None,
        cpu_limit=request.cpu_limit if request.HasField("cpu_limit") else None,
        pids_limit=request.pids_limit if request.HasField("pids_limit") else None,
    )
    return model.ClaimWish(change, request.request_id)


def claimed(found: model.Claimed) -> pb.ClaimResponse:
    """Shows a sandbox that was claimed."""
    phases = pb.ClaimPhases(waited_s=found.waited_s, changed_s=found.changed_s)
    return pb.ClaimResponse(sandbox=sandbox(found.sandbox), phases=phases)


def new_pool(found: model.PoolInfo) -> pb.InitializePoolResponse:
    """Shows a pool that was asked for."""
    return pb.InitializePoolResponse(pool_id=found.id, sandbox_ids=found.sandbox_ids)


def pool(found: model.PoolStatus) -> pb.Pool:
    """Shows a pool with its members."""
    plan, counters = found.plan, found.counters
    return pb.Pool(
        pool_id=found.id,
        origin=_ORIGINS[found.origin],
        size=plan.size,
        spec=_asked(plan.request),
        labels=plan.labels,
        options=pb.PoolOptions(
            contexts=plan.warm_contexts,
            preload=plan.preload,
            member_age_max_s=plan.member_age_max_s,
            refill_per_s=plan.refill_per_s,
        ),
        members=[
            pb.PoolMember(
                slot=member.slot,
                sandbox_id=member.sandbox_id,
                state=_STATES[member.state],
                state_s=member.state_s,
                age_s=member.age_s,
                calls=member.calls,
            )
            for member in found.members
        ],
        waiting=found.waiting,
        counters=pb.PoolCounters(
            runs=counters.runs,
            claims=counters.claims,
            resets=counters.resets,
            replaced=counters.replaced,
            failed=counters.failed,
            refused=counters.refused,
        ),
        trouble=found.trouble,
        create_time=timestamp(found.created_at),
    )


def _asked(request: model.SandboxRequest) -> sandbox_pb.SandboxSpec:
    """Shows what was asked for each member; what was not is policy's to decide."""
    simple = {name: getattr(request, name) for name in request.__slots__ if name in _SIMPLE}
    found = sandbox_pb.SandboxSpec(
        **{name: value for name, value in simple.items() if value is not None}, env_vars=request.env_vars
    )
    if request.tools is not None:
        found.tools.SetInParent()
        for name, options in request.tools.items():
            found.tools.tools.add(name=name, options_json=json_text(options))
    return found


def lease(found: model.Lease) -> pb.Lease:
    """Shows one use of a member."""
    verdict = found.verdict
    return pb.Lease(
        number=found.number,
        pool_id=found.pool_id,
        slot=found.slot,
        sandbox_id=found.sandbox_id,
        kind=_KINDS[found.kind],
        execution_id=found.execution_id,
        tool=found.tool,
        verdict=execution_pb.VERDICT_UNSPECIFIED
        if verdict is None
        else execution_pb.Verdict.Value(f"VERDICT_{verdict.name}"),
        create_time=timestamp(found.created_at),
        waited_s=found.waited_s,
        held_s=found.held_s,
        reset_s=found.reset_s,
        outcome=_OUTCOMES[found.outcome],
        reason=found.reason,
        proof=None if found.proof is None else _proof(found.proof),
    )


def _proof(found: model.ResetProof) -> pb.ResetProof:
    return pb.ResetProof(
        processes_killed=found.processes_killed,
        files_removed=found.files_removed,
        objects_removed=found.objects_removed,
        processes_left=found.processes_left,
        contexts_left=found.contexts_left,
        files_left=found.files_left,
        objects_left=found.objects_left,
        keys_left=found.keys_left,
        variables_left=found.variables_left,
        mounts_changed=found.mounts_changed,
    )
