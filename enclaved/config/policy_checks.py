"""What makes no sense in a role, although each of its values is well-formed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping

from enclaved.core.policy import Role, Tools, granted_image, image_problem, is_protected, tool_matches, user_problem
from enclaved.errors import InvalidRequest

_RUNC = "runc"


def role_problems(
    role: Role, tools: Tools, protected: tuple[str, ...], runtime_classes: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Finds what is wrong with a role, by key. ``runtime_classes`` are those that are configured beside runc."""
    bad_images = [entry for entry in role.images if image_problem(entry)]
    for entry in bad_images:
        yield "images", f"has {entry!r}, which {image_problem(entry)}"
    if role.images and not bad_images:  # a role without any makes no sandboxes
        yield from _default_image_problems(role)
    yield from _volume_problems(role, protected)
    known_classes = (_RUNC, *runtime_classes)
    for name in role.runtime_classes:
        if "*" not in name and name not in known_classes:
            yield "runtime_classes", f"has {name!r}, which is not configured; known are {', '.join(known_classes)}"
    if "none" not in role.networks:
        yield "networks", 'must have "none": what nobody asks for is not there'
    known = tools.names()
    for pattern in role.tools:
        if not any(tool_matches(name, (pattern,)) for name in known):
            yield "tools", f"has {pattern!r}, and no tool is called that; known are {', '.join(known)}"
    for name, rule in role.tool_options.items():
        key = f"tool_options.{name}"
        if name not in known:
            yield key, f"is about no tool; known are {', '.join(known)}"
            continue
        try:
            tools.check_options(name, rule.forced)
        except InvalidRequest as error:
            for violation in error.violations:
                yield f"{key}.forced", f"is wrong: {violation.field} {violation.description}"
        options = tools.option_names(name)
        for option in rule.allowed or ():
            if option not in options:
                yield f"{key}.allowed", f"has {option!r}, which is no option; known are {', '.join(options)}"


def user_problems(roles: Mapping[str, Role]) -> Iterator[tuple[str, str]]:
    """Finds what is wrong with the users of roles, by role."""
    owners: dict[str, str] = {}
    for name, role in roles.items():
        for user in role.users:
            problem = user_problem(user)
            if problem:
                yield name, f"has {user!r}, which {problem}"
            elif (other := owners.setdefault(user, name)) != name:
                yield name, f"has {user!r}, who has the role {other} already"


def _default_image_problems(role: Role) -> Iterator[tuple[str, str]]:
    image = role.limits.image_default
    found = granted_image(image, role.images)
    if found is None:
        yield "images", f"does not have the role's own image_default, {image!r}; name it, or set image_default"
    elif role.images_by_digest and not found.digest:
        yield "images_by_digest", f"is set, and image_default {image!r} has no digest; pin it in images"


def _volume_problems(role: Role, protected: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    names = [volume.name for volume in role.volumes if volume.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "volumes", f"names {name!r} twice"
    for volume in role.volumes:
        path = volume.path
        if not path.startswith("/") or posixpath.normpath(path) != path or not path.isprintable():
            yield "volumes", f"has {path!r}, which must be an absolute path without '..'"
        elif path == "/":
            yield "volumes", "has '/', which no policy can grant"
        elif showing := is_protected(path, protected, whole=False):
            yield "volumes", f"has {path!r}, which lies in {showing}: no policy can grant that"
