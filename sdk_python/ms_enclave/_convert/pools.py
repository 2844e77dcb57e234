"""Pools, between the contract and the SDK's models."""

from __future__ import annotations

from ms_enclave._convert.texts import moment, word
from ms_enclave._model.pools import Lease, PoolClaim, PoolMember, PoolOptions, PoolStats
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pb


def pool_options(options: PoolOptions) -> pb.PoolOptions:
    """Writes how members are kept."""
    return pb.PoolOptions(
        contexts=options.contexts,
        preload=options.preload,
        member_age_max_s=options.member_age_max_s,
        refill_per_s=options.refill_per_s,
    )


def claim_request(pool_id: str, claim: PoolClaim, request_id: str, wait_timeout_s: float) -> pb.ClaimRequest:
    """Writes a claim."""
    return pb.ClaimRequest(
        pool_id=pool_id,
        wait_timeout_s=wait_timeout_s,
        ttl_s=claim.ttl_s,
        labels=claim.labels,
        memory_limit_bytes=claim.memory_limit_bytes,
        cpu_limit=claim.cpu_limit,
        pids_limit=claim.pids_limit,
        request_id=request_id,
    )


def pool_stats(found: pb.Pool) -> PoolStats:
    """Reads a pool."""
    options = found.options
    return PoolStats(
        id=found.pool_id,
        origin=word(pb.Pool.Origin.Name, found.origin, "ORIGIN_"),
        size=found.size,
        members=tuple(
            PoolMember(
                slot=member.slot,
                sandbox_id=member.sandbox_id,
                state=word(pb.PoolMember.State.Name, member.state, "STATE_"),
                state_s=member.state_s,
                age_s=member.age_s,
                calls=member.calls,
            )
            for member in found.members
        ),
        waiting=found.waiting,
        counters={field.name: getattr(found.counters, field.name) for field in pb.PoolCounters.DESCRIPTOR.fields},
        trouble=found.trouble,
        image=found.spec.image,
        labels=dict(found.labels),
        options=PoolOptions(
            contexts=tuple(options.contexts),
            preload=tuple(options.preload),
            member_age_max_s=options.member_age_max_s if options.HasField("member_age_max_s") else None,
            refill_per_s=options.refill_per_s,
        ),
        created_at=moment(found.create_time),
    )


def lease(found: pb.Lease) -> Lease:
    """Reads one use of a member."""
    proof = {field.name: int(getattr(found.proof, field.name)) for field in pb.ResetProof.DESCRIPTOR.fields}
    verdict = word(execution_pb.Verdict.Name, found.verdict, "VERDICT_").upper()
    return Lease(
        number=found.number,
        pool_id=found.pool_id,
        slot=found.slot,
        sandbox_id=found.sandbox_id,
        kind=word(pb.Lease.Kind.Name, found.kind, "KIND_"),
        execution_id=found.execution_id,
        tool=found.tool,
        verdict="" if verdict == "UNSPECIFIED" else verdict,
        created_at=moment(found.create_time),
        waited_s=found.waited_s,
        held_s=found.held_s,
        reset_s=found.reset_s,
        outcome=word(pb.Lease.Outcome.Name, found.outcome, "OUTCOME_"),
        reason=found.reason,
        proof=proof if found.HasField("proof") else None,
    )
