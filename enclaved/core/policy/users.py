"""Who has which role. Pure."""

from __future__ import annotations

from enclaved.core.policy.programs import matches
from enclaved.core.policy.roles import ANY, Role, Rules
from enclaved.core.spec_fields import shown
from enclaved.errors import PolicyDenied
from enclaved.model import Identity, IdentityKind


def role_of(identity: Identity, rules: Rules) -> Role:
    """Finds the role of somebody: the one whose users name them, else the one that came with their token.

    A name counts before a pattern, and an earlier role before a later one. Raises `PolicyDenied` for a role that there
    is not, so that a token whose role was removed can do nothing.
    """
    for is_exact in (True, False):
        for role in rules.roles.values():
            if any(_is_named(identity, user, is_exact) for user in role.users):
                return role
    found = rules.roles.get(identity.role)
    if found is None:
        text = f"your role {shown(identity.role)} is not in this daemon's policy; ask its operator for another"
        raise PolicyDenied("role", "identity", text)
    return found


def user_problem(user: str) -> str | None:
    """Says what is wrong with an entry of a role's users, if something is."""
    kind, _, name = user.partition(":")
    if kind not in tuple(IdentityKind):
        return f"must start with one of {', '.join(IdentityKind)}, such as token:ci-*"
    return "names nobody after the colon" if ":" in user and not name else None


def _is_named(identity: Identity, user: str, is_exact: bool) -> bool:
    kind, colon, name = user.partition(":")
    if kind != identity.kind.value or (ANY not in name and bool(colon)) is not is_exact:
        return False
    return not colon or matches(identity.name, (name,))
