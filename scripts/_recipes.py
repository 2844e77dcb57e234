"""What scripts/build-image can build: the packages of each image, and what is taken away from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

DEFAULT_NAME = "ms-enclave/python:3.11"
SYSTEMD_NAME = "ms-enclave/systemd:12"
TOOLCHAIN_NAME = "ms-enclave/toolchain:12"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in the image. A change of any value makes old images and caches stale."""

    version: int = 1
    """Raised when the code below changes what it makes of the other values."""
    suite: str = "bookworm"
    extends: str = ""
    """The kind whose root file system the packages are added to; empty: to nothing."""
    packages: tuple[str, ...] = ("python3", "python3-pip", "python3-venv", "python-is-python3")
    removed: tuple[str, ...] = (
        "etc/hostname",
        "etc/machine-id",
        "etc/resolv.conf",
        "etc/*-",
        "usr/share/info/*",
        "usr/share/lintian/*",
        "usr/share/locale/*",
        "usr/share/man/*",
        "var/cache/apt/*",
        "var/cache/debconf/*-old",
        "var/cache/ldconfig/*",
        "var/lib/apt/lists/*",
        "var/lib/dpkg/*-old",
        "var/log/*",
        "dev/*",
        "proc/*",
        "run/*",
        "sys/*",
        "tmp/*",
    )
    written: tuple[tuple[str, str], ...] = (
        (
            "etc/dpkg/dpkg.cfg.d/slim",
            "path-exclude /usr/share/info/*\npath-exclude /usr/share/locale/*\npath-exclude /usr/share/man/*\n",
        ),
        # The image exists to run one Python: an image derived from it may `pip install` without a ceremony.
        ("etc/pip.conf", "[global]\nbreak-system-packages = true\nroot-user-action = ignore\n"),
    )
    changes: tuple[str, ...] = (
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LANG=C.UTF-8",
        'CMD ["python3"]',
    )

    def key(self, architecture: str) -> str:
        """Returns a hash of the recipe, by which an image or a cached root says what it was made from."""
        values = dict(vars(self))
        if self.extends:
            values["extends"] = KINDS[self.extends].recipe.key(architecture)
        else:
            del values["extends"]
        text = json.dumps([values, architecture], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Kind:
    """A kind of image that this script can build."""

    name: str
    """The image's name, if the user gives none."""
    cache: str
    """How its archives in the cache begin."""
    recipe: Recipe


KINDS = {
    "python": Kind(DEFAULT_NAME, "root", Recipe()),
    # Compilers, an interpreter of another language and the usual libraries for numbers.
    "toolchain": Kind(
        TOOLCHAIN_NAME,
        "toolchain",
        Recipe(
            extends="python",
            packages=(
                "gcc",
                "libc6-dev",
                "nodejs",
                "python3-matplotlib",
                "python3-numpy",
                "python3-pandas",
                # Of what python3-fonttools and python3-numpy may choose from, the small ones.
                "libblas3",
                "liblapack3",
                "python3-munkres",
                "python3-unicodedata2",
            ),
            removed=(
                *Recipe().removed,
                "usr/lib/python3/dist-packages/*/tests/*",
                "usr/share/unicode/*",
                "var/cache/fontconfig/*",
            ),
        ),
    ),
    # A machine with systemd as PID 1 and what scripts/install-service asks for; no sandbox ever runs it.
    "systemd": Kind(
        SYSTEMD_NAME,
        "systemd",
        Recipe(
            packages=("python3", "python3-venv", "systemd", "systemd-sysv", "procps"),
            written=(*Recipe().written, ("etc/machine-id", "")),
            changes=(
                "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "ENV LANG=C.UTF-8",
                "ENV container=docker",
                'CMD ["/lib/systemd/systemd"]',
            ),
        ),
    ),
}
