"""docs/metrics.md names every metric with its type and labels, and no other."""

import re
from pathlib import Path

from enclaved.metrics import Metrics
from enclaved.model import (
    CHANNEL_NAMES,
    Cause,
    Intervention,
    LeaseKind,
    MemberState,
    NoticeKind,
    Phases,
    Protection,
    ProtectionState,
    ResetOutcome,
    SandboxState,
    Verdict,
)
from enclaved.model.leftovers import LeftoverKind

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(PAGE)}


def exported() -> dict[str, tuple[str, frozenset[str]]]:
    metrics = Metrics(version="0", tools=["python_executor"])
    metrics.rpcs.started("unary", "s", "m")
    metrics.rpcs.handled("unary", "s", "m", "OK", 0.1)
    metrics.http.answered("/health", 200)
    metrics.sandboxes.moved(None, SandboxState.RUNNING)
    metrics.sandboxes.created()
    metrics.executions.started()
    metrics.executions.finished("python_executor", Verdict.EXITED, Phases())
    metrics.files.operation("read", 0.1, 1, 1)
    metrics.engine.up(True)
    metrics.daemon.protections([Protection("profile", ProtectionState.EFFECTIVE)])
    metrics.engine.called("create", 0.1)
    metrics.daemon.reloaded(True)
    metrics.access.policy_refused("network")
    metrics.access.quota_refused("sandboxes_max")
    metrics.pools.lent(LeaseKind.RUN, 0.1)
    metrics.pools.reset(ResetOutcome.CLEAN, 0.1)
    text = metrics.render().decode()
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        if name.startswith("process_"):
            continue
        labels = {
            label
            for body in re.findall(rf"^{name}(?:_bucket|_sum|_count)?\{{(.*)\}} ", text, re.MULTILINE)
            for label in re.findall(r'(\w+)="', body)
        }
        found[name] = (kind, frozenset(labels - {"le"}))
    return found


def test_every_metric_is_documented_with_its_type_and_labels():
    assert documented() == exported()


def test_every_value_of_a_closed_label_is_documented():
    for value in (
        *SandboxState,
        *Cause,
        *Verdict,
        *MemberState,
        *ResetOutcome,
        *NoticeKind,
        *LeftoverKind,
        *Intervention,
        *ProtectionState,
    ):
        assert f"`{value.value}`" in PAGE
    for channel in CHANNEL_NAMES.values():
        assert f"`{channel}`" in PAGE
