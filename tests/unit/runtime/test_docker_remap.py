"""What an engine says of the users in its containers."""

from __future__ import annotations

from typing import Any

import pytest

from enclaved.runtime.docker.remap import mapped_root, maps_users

PLAIN = ["name=seccomp,profile=default"]


@pytest.mark.parametrize(
    ("options", "directory", "maps", "root"),
    [
        (PLAIN, "/var/lib/docker", False, None),
        (PLAIN, "/var/lib/docker/100000.100000", False, None),
        ([*PLAIN, "name=userns"], "/var/lib/docker/100000.100000", True, 100000),
        ([*PLAIN, "name=userns"], "/var/lib/docker/100000.200000/", True, 100000),
        ([*PLAIN, "name=userns"], "/var/lib/docker", True, None),
        ([*PLAIN, "name=userns"], "/var/lib/0.0", True, None),
        ([*PLAIN, "name=userns"], "/var/lib/4294967295.1", True, None),
        ([*PLAIN, "name=rootless"], "/home/u/.local/share/docker", True, None),
        (None, "/var/lib/docker", False, None),
    ],
)
def test_the_mapped_root_is_read_off_the_directory(options: Any, directory: str, maps: bool, root: int | None) -> None:
    info = {"SecurityOptions": options, "DockerRootDir": directory}
    assert maps_users(info) is maps
    assert mapped_root(info) == root
