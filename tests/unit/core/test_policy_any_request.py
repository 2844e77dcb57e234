"""Whatever is asked for, the answer is a spec within the limits or a typed error."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.core.policy import Admission, execution_timeout
from enclaved.core.tmpfs import HEAP_RESERVE_BYTES
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import PortMapping, SandboxRequest, Volume
from tests.unit.core.asking import GIB, LIMITS, MIB, admit, granted, policy

NUMBERS = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 30, 64 * MIB, 80 * MIB, 128 * MIB, 512 * MIB, 4 * GIB, 4 * GIB + 1, 2**63]),
)
TEXTS = st.text(st.characters(), max_size=20)
MAPPINGS = st.dictionaries(TEXTS | st.sampled_from(["A", "HOME", "LD_PRELOAD"]), TEXTS, max_size=3)
OPTIONS = st.dictionaries(st.just("timeout") | TEXTS, st.none() | st.integers() | st.floats() | TEXTS, max_size=2)

REQUESTS = st.builds(
    SandboxRequest,
    image=st.none() | TEXTS,
    memory_limit_bytes=NUMBERS,
    cpu_limit=NUMBERS,
    pids_limit=NUMBERS,
    working_dir_size_bytes=NUMBERS,
    tmp_size_bytes=NUMBERS,
    working_dir=st.none() | TEXTS | st.sampled_from(["/sandbox", "/", "/etc"]),
    env_vars=MAPPINGS,
    tools=st.none() | st.dictionaries(TEXTS | st.sampled_from(["bash", "python_executor"]), OPTIONS, max_size=3),
    timeout_s=NUMBERS,
    ttl_s=NUMBERS,
    remove_on_exit=st.none() | st.booleans(),
    network_enabled=st.none() | st.booleans(),
    network=st.none() | TEXTS | st.sampled_from(["none", "bridge", "host"]),
    volumes=st.just(()) | st.builds(lambda path: (Volume(path, path),), TEXTS),
    ports=st.just(()) | st.builds(lambda port: (PortMapping(port),), TEXTS),
    extra_hosts=st.just({}) | MAPPINGS,
    platform=st.none() | TEXTS | st.just("linux/amd64"),
    command=st.just(()) | st.builds(lambda word: (word,), TEXTS),
    privileged=st.none() | st.booleans(),
    documented_defaults=st.frozensets(st.sampled_from([each.name for each in fields(SandboxRequest)])),
)

# Mostly well-formed, so that the far side of the checks is seen as well.
PLAIN_REQUESTS = st.builds(
    SandboxRequest,
    memory_limit_bytes=st.none() | st.integers(64 * MIB, 6 * GIB),
    cpu_limit=st.none() | st.floats(0.05, 3),
    pids_limit=st.none() | st.integers(32, 2048),
    working_dir_size_bytes=st.none() | st.integers(64 * 1024, 512 * MIB),
    tmp_size_bytes=st.none() | st.integers(64 * 1024, 256 * MIB),
    timeout_s=st.none() | st.floats(0, 7200),
    ttl_s=st.none() | st.floats(1, 1_000_000),
    tools=st.none() | st.just({}) | st.just({"bash": {"timeout": 3}}),
    network_enabled=st.none() | st.booleans(),
    documented_defaults=st.frozensets(
        st.sampled_from(["memory_limit_bytes", "cpu_limit", "network_enabled", "timeout_s", "ttl_s", "pids_limit"])
    ),
)


def outcome(request: SandboxRequest) -> Admission | str:
    """Returns what a request is granted, or the error's type and text; any other exception fails the test."""
    try:
        return policy().admit(request)
    except (InvalidRequest, PolicyDenied) as error:
        text = str(error)
        text.encode()
        assert len(text) < 8000
        return f"{type(error).__name__}: {text}"


def check_limits(request: SandboxRequest, admission: Admission) -> None:
    spec = admission.spec
    assert 64 * MIB <= spec.memory_limit_bytes <= LIMITS.memory_max_bytes
    assert 0.05 <= spec.cpu_limit <= LIMITS.cpu_max
    assert 32 <= spec.pids_limit <= LIMITS.pids_max
    assert 0 < spec.timeout_s <= spec.timeout_max_s == LIMITS.timeout_max_s
    assert 1 <= spec.ttl_s <= LIMITS.ttl_max_s
    sizes = (spec.working_dir_size_bytes, spec.tmp_size_bytes, spec.shm_size_bytes)
    assert min(sizes) >= 4096
    assert sum(sizes) + HEAP_RESERVE_BYTES <= spec.memory_limit_bytes
    assert spec.working_dir.startswith("/")
    assert not request.privileged
    assert not request.volumes
    assert not request.ports
    for adjustment in admission.adjustments:
        assert adjustment.field in request.documented_defaults
    for name in ("memory_limit_bytes", "cpu_limit", "pids_limit", "ttl_s", "working_dir", "image"):
        asked = getattr(request, name)
        lowered = name in {adjustment.field for adjustment in admission.adjustments}
        assert asked is None or lowered or getattr(spec, name) == asked


@settings(deadline=None)
@given(REQUESTS)
def test_any_request_yields_a_spec_within_the_limits_or_a_typed_error(request: SandboxRequest) -> None:
    found = outcome(request)

    assert found == outcome(request)
    if isinstance(found, Admission):
        check_limits(request, found)


@settings(deadline=None)
@given(PLAIN_REQUESTS)
def test_well_formed_requests_are_granted_in_full_or_refused(request: SandboxRequest) -> None:
    found = outcome(request)

    assert found == outcome(request)
    if isinstance(found, Admission):
        check_limits(request, found)


@settings(deadline=None)
@given(st.none() | st.floats(), st.none() | st.floats())
def test_any_timeout_is_within_the_sandboxs_maximum_or_a_typed_error(
    requested_s: float | None, tool_s: float | None
) -> None:
    spec = granted()

    with suppress(InvalidRequest, PolicyDenied):
        assert 0 < execution_timeout(requested_s, tool_s, spec) <= spec.timeout_max_s


@settings(deadline=None)
@given(st.integers(64 * MIB, 4 * GIB))
def test_default_file_systems_fit_into_any_memory_limit(memory_bytes: int) -> None:
    check_limits(SandboxRequest(), admit(memory_limit_bytes=memory_bytes))
