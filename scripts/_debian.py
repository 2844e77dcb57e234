"""What the scripts ask of Debian: packages for this machine, and a mirror to build images from.

As a program it installs the packages that it is given: ``_debian.py PACKAGE...``.
"""

from __future__ import annotations

import email.utils
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _console import CommandFailed, Progress, Refused, run, run_script

MIRROR_TIMEOUT_S = 20.0
RELEASE_BYTES_MAX = 1024 * 1024
_SCHEMES = ("http", "https")
_ONE_LINE = re.compile(r"deb\s+(?:\[[^]]*\]\s+)?(https?://\S+)")


@dataclass(frozen=True)
class Mirror:
    """A Debian mirror that answered."""

    url: str
    released_s: int
    """When its release of the suite was made, in seconds since 1970."""


def may_install() -> bool:
    """Says whether this process can install Debian packages on this machine."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: Iterable[str]) -> None:
    """Installs Debian packages; raises ``Refused`` with apt's own words if that fails."""
    names = list(packages)
    if not may_install():
        raise Refused(f"{' '.join(names)} is needed. Fix: sudo apt-get install {' '.join(names)}, or the like")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *names]
    with Progress(f"installing {' '.join(names)}") as progress:
        try:
            run(command, progress=progress, environment=environment)
        except CommandFailed:
            # The package lists may be absent or old. Sources that are none of our business may be unreachable, so
            # only the second try to install decides.
            try:
                run(["apt-get", "update"], progress=progress, environment=environment)
            except CommandFailed as error:
                progress.update(0, str(error))
            try:
                run(command, progress=progress, environment=environment)
            except CommandFailed as error:
                message = "\n  ".join([f"apt-get cannot install {' '.join(names)}:", *error.tail])
                raise Refused(message) from error


def write_apt_config(root: Path, mirror: str, suite: str) -> Path:
    """Lets this machine's apt install packages below another root, from one mirror; returns apt's configuration.

    Packages come over this machine's network and proxies; their scripts run in the other root.
    """
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt", "etc/apt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/apt/sources.list").write_text(f"deb {mirror} {suite} main\n")
    lines = [
        f'Dir "{root}";',
        f'DPkg::Chroot-Directory "{root}";',
        'Acquire::Languages "none";',
        # Its own user may not be able to reach the root, which lies in a cache of ours.
        'APT::Sandbox::User "root";',
        *(f'Acquire::{scheme}::Proxy "{proxy}";' for scheme, proxy in _proxies().items() if scheme in _SCHEMES),
    ]
    file = root.with_suffix(".apt.conf")
    file.write_text("\n".join(lines) + "\n")
    return file


def architecture() -> str:
    """Returns Debian's name for this machine's processor."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "ppc64le": "ppc64el"}.get(machine, machine)


def mirrors(apt: Path) -> Iterator[str]:
    """Yields the addresses in a machine's apt sources (one-line and deb822 files)."""
    folder = apt / "sources.list.d"
    for path in [apt / "sources.list", *sorted(folder.glob("*.list"))]:
        for line in _lines(path):
            if match := _ONE_LINE.match(line):
                yield match[1].rstrip("/")
    for path in sorted(folder.glob("*.sources")):
        for line in _lines(path):
            name, _, value = line.partition(":")
            if name.lower() == "uris":
                yield from (uri.rstrip("/") for uri in value.split() if uri.startswith(("http://", "https://")))


def choose_mirror(candidates: Iterable[str], suite: str) -> Mirror:
    """Returns the first address that serves Debian's own release of a suite; raises ``Refused`` if none does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(_proxies()))
    tried = list(dict.fromkeys(candidates))
    for url in tried:
        try:
            with opener.open(f"{url}/dists/{suite}/Release", timeout=MIRROR_TIMEOUT_S) as answer:
                release = dict(_field(line) for line in answer.read(RELEASE_BYTES_MAX).decode().splitlines())
            if release.get("Origin") == "Debian" and release.get("Codename") == suite:
                return Mirror(url, int(email.utils.parsedate_to_datetime(release["Date"]).timestamp()))
        except (OSError, ValueError, KeyError):
            continue
    raise Refused(
        f"no Debian mirror answers (tried {', '.join(tried) or 'none: apt names none'}). Fix: name one with --mirror, "
        "or where an image registry is reachable: docker pull python:3.11-slim"
    )


def _proxies() -> dict[str, str]:
    """Returns the proxies of the environment and of apt, which debootstrap uses as well."""
    proxies = urllib.request.getproxies()
    if shutil.which("apt-config"):
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
        for scheme, proxy in re.findall(r'^Acquire::(https?)::Proxy "([^"]+)"', dump, re.MULTILINE):
            proxies[scheme] = proxy
    return proxies


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    sys.exit(run_script("apt-get", lambda: install(sys.argv[1:])))
