"""What was decided on one request, rule by rule."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

from enclaved.core.policy.roles import Role
from enclaved.errors import PolicyDenied
from enclaved.model import Adjustment, SandboxRequest

NumberT = TypeVar("NumberT", int, float)


class Outcome(enum.StrEnum):
    """What a rule made of a wish."""

    GRANTED = "granted"
    DEFAULT = "default"
    """Nothing was asked for."""
    LOWERED = "lowered"
    """A documented default was more than there may be."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Ruling:
    """One decision."""

    rule: str
    """The key of the role that decided."""
    field: str
    asked: str
    granted: str
    outcome: Outcome
    origin: str
    """Where the rule was said."""
    why: str = ""
    """Of a refusal: what the caller is told."""


class Docket:
    """Notes the decisions on one request. A refusal ends them, or is noted as well (``goes_on``)."""

    def __init__(self, request: SandboxRequest, role: Role, *, goes_on: bool = False) -> None:
        self.request, self.role = request, role
        self.rulings: list[Ruling] = []
        self.adjustments: list[Adjustment] = []
        self._goes_on = goes_on

    def grant(self, key: str, field: str, asked: object, granted: object) -> None:
        """Notes what was granted; ``asked=None``: nothing was asked for."""
        outcome = Outcome.DEFAULT if asked is None else Outcome.GRANTED
        self._note(key, field, "" if asked is None else str(asked), str(granted), outcome)

    def lower(self, rule: str, key: str, field: str, wanted: str, granted: str) -> None:
        """Notes that a documented default was lowered."""
        self.adjustments.append(Adjustment(field, wanted, granted, rule))
        self._note(key, field, wanted, granted, Outcome.LOWERED)

    def refuse(self, rule: str, key: str, field: str, asked: str, text: str, limit: str = "") -> None:
        """Notes a refusal. Raises it as `PolicyDenied`, unless the others are wanted as well."""
        denial = PolicyDenied(rule, f"spec.{field}", text, limit)
        if not self._goes_on:
            raise denial
        self._note(key, field, asked, "", Outcome.REFUSED, str(denial))

    def number(self, key: str, field: str, default: NumberT, maximum: NumberT) -> NumberT:
        """Returns the wanted number, the default if none is wanted, or the maximum instead of a documented default.

        Refuses more than the maximum.
        """
        wanted: NumberT | None = getattr(self.request, field)
        if wanted is None:
            self.grant(f"{key}_default{_unit(field)}", field, None, default)
            return default
        limit = f"{key}_max{_unit(field)}"
        if wanted <= maximum:
            self.grant(limit, field, wanted, wanted)
            return wanted
        if field in self.request.documented_defaults:
            self.lower("resources", limit, field, str(wanted), str(maximum))
            return maximum
        text = f"{field} is {wanted}, and at most {maximum} is granted; ask for less"
        self.refuse("resources", limit, field, str(wanted), text, str(maximum))
        return maximum

    def _note(self, key: str, field: str, asked: str, granted: str, outcome: Outcome, why: str = "") -> None:
        self.rulings.append(Ruling(key, field, asked, granted, outcome, self.role.origin(key), why))


def _unit(field: str) -> str:
    """The unit at the end of a field's name, which its limits have too."""
    return next((unit for unit in ("_bytes", "_s") if field.endswith(unit)), "")
