"""What a pool may be asked to be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from enclaved.core.policy import check_context_name, check_labels
from enclaved.errors import InvalidRequest
from enclaved.model import PoolChange, PoolPlan

SIZE_MAX: Final = 100
REFILL_MAX_PER_S: Final = 100.0
REFILL_MIN_PER_S: Final = 0.01
AGE_MIN_S: Final = 10.0
CONTEXTS_MAX: Final = 8
MODULES_MAX: Final = 50
MODULE_BYTES_MAX: Final = 100
_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def check_plan(plan: PoolPlan) -> None:
    """Raises `InvalidRequest` for a plan without sense. What policy says of its sandboxes is another question."""
    _check_size(plan.size)
    check_labels(plan.labels)
    _check_warmth(plan.contexts, plan.preload)
    if plan.member_age_max_s is not None:
        _check_age(plan.member_age_max_s)
    _check_rate(plan.refill_per_s)


def changed(plan: PoolPlan, change: PoolChange) -> PoolPlan:
    """A plan with what is to be other. Raises `InvalidRequest`."""
    if change.size is not None:
        _check_size(change.size)
        plan = replace(plan, size=change.size)
    if change.member_age_max_s == 0:
        plan = replace(plan, member_age_max_s=None)
    elif change.member_age_max_s is not None:
        _check_age(change.member_age_max_s)
        plan = replace(plan, member_age_max_s=change.member_age_max_s)
    if change.refill_per_s is not None:
        _check_rate(change.refill_per_s)
        plan = replace(plan, refill_per_s=change.refill_per_s)
    return plan


def _check_size(size: int) -> None:
    if not 1 <= size <= SIZE_MAX:
        raise InvalidRequest.of("size", f"must be from 1 to {SIZE_MAX}, is {size}")


def _check_age(seconds: float) -> None:
    if not math.isfinite(seconds) or seconds < AGE_MIN_S:
        raise InvalidRequest.of("member_age_max_s", f"must be a finite number, {AGE_MIN_S:g} or more, is {seconds:g}")


def _check_rate(per_s: float) -> None:
    if not REFILL_MIN_PER_S <= per_s <= REFILL_MAX_PER_S:
        raise InvalidRequest.of(
            "refill_per_s", f"must be from {REFILL_MIN_PER_S:g} to {REFILL_MAX_PER_S:g}, is {per_s:g}"
        )


def _check_warmth(contexts: Sequence[str], preload: Sequence[str]) -> None:
    """Raises `InvalidRequest` for what cannot be the names of contexts and modules."""
    for index, name in enumerate(contexts):
        check_context_name(name, f"contexts[{index}]")
    if len(contexts) > CONTEXTS_MAX:
        raise InvalidRequest.of("contexts", f"must be at most {CONTEXTS_MAX}, are {len(contexts)}")
    for index, name in enumerate(preload):
        if len(name) > MODULE_BYTES_MAX or not _MODULE.fullmatch(name):
            raise InvalidRequest.of(
                f"preload[{index}]", f"must be the name of a module, such as json; is {name[:100]!r}"
            )
    if len(preload) > MODULES_MAX:
        raise InvalidRequest.of("preload", f"must be at most {MODULES_MAX} modules, are {len(preload)}")
    for field, names in (("contexts", contexts), ("preload", preload)):
        if len(set(names)) < len(names):
            raise InvalidRequest.of(field, "names one twice")
