"""What a sandbox of a runtime class is made with, and what it cannot have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclaved.core.policy import Policy, PolicyLimits
from enclaved.core.runtime_classes import RuntimeClasses
from enclaved.errors import EngineRefused, InvalidRequest, PolicyDenied
from enclaved.model import Mount, Network, RuntimeClass, SandboxRequest, SandboxSpec
from enclaved.tools.registry import ToolRegistry

GVISOR = RuntimeClass("gvisor", "runsc", pids_extra=1000)
CLASSES = RuntimeClasses([GVISOR])


@pytest.fixture
def plain() -> SandboxSpec:
    return Policy(PolicyLimits(), ToolRegistry.built_in()).admit(SandboxRequest(pids_limit=64)).spec


@pytest.fixture
def spec(plain: SandboxSpec) -> SandboxSpec:
    return replace(plain, runtime_class="gvisor")


def test_the_engines_own_runtime_is_no_class(plain: SandboxSpec) -> None:
    assert (CLASSES.of(plain), CLASSES.engine_runtime(plain), CLASSES.realised(plain)) == (None, "", plain)


def test_a_class_names_the_engines_runtime_and_leaves_it_threads_of_its_own(spec: SandboxSpec) -> None:
    assert (CLASSES.of(spec), CLASSES.engine_runtime(spec)) == (GVISOR, "runsc")
    assert CLASSES.realised(spec) == replace(spec, pids_limit=1064)


def test_a_class_that_is_not_configured_any_more_is_refused_and_never_replaced(spec: SandboxSpec) -> None:
    gone = replace(spec, runtime_class="kata")
    with pytest.raises(InvalidRequest, match=r"'kata' is not configured on this daemon \(configured: gvisor\)"):
        CLASSES.of(gone)


@pytest.mark.parametrize(
    ("grant", "rule"),
    [({"network": Network.BRIDGE}, "network"), ({"mounts": (Mount("/srv", "/srv", True),)}, "volumes")],
)
def test_what_is_guarded_for_the_engines_own_runtime_only_is_refused(
    spec: SandboxSpec, grant: dict[str, object], rule: str
) -> None:
    with pytest.raises(PolicyDenied) as caught:
        CLASSES.of(replace(spec, **grant))
    assert caught.value.rule == rule


def test_a_runtime_that_answers_with_its_manual_is_explained_in_a_sentence(
    spec: SandboxSpec, plain: SandboxSpec
) -> None:
    manual = "cannot update: runsc did not terminate: exit status 128\n" + "flags\n" * 1000
    with (
        pytest.raises(EngineRefused, match="the runtime of the class 'gvisor' may have no way to do that") as caught,
        CLASSES.explaining(spec),
    ):
        raise EngineRefused("update", manual)
    assert "flags" not in str(caught.value)
    with pytest.raises(EngineRefused, match="flags"), CLASSES.explaining(plain):
        raise EngineRefused("update", manual)
