"""Names of images: which are names, and which mean the same."""

from __future__ import annotations

import pytest

from enclaved.errors import InvalidRequest
from enclaved.runtime.docker.images import checked_reference, familiar


@pytest.mark.parametrize(
    "name",
    [
        "python",
        "python:3.11-slim",
        "ms-enclave/python:3.11",
        "docker.io/library/python:3.11-slim",
        "localhost:5000/a/b_c/d__e-f:V1.0_x",
        "registry.example.com/team/image@sha256:" + "0a" * 32,
        "a:b@sha256:" + "0a" * 32,
        "sha256:" + "0a" * 32,
    ],
)
def test_what_docker_takes_as_a_name_is_one(name):
    assert checked_reference(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "Python", "python:", "python@", "python:-x", "/python", "python/", "a//b", "a/../b", "a..b"),
        *("a?b=c", "a#b", "a%2fb", "python:3.11\n", "py\x00thon", "pythön", "http://a/b", "a@sha256:xyz", "x" * 513),
        "python:" + "t" * 129,
    ],
)
def test_anything_else_is_refused_by_field(name):
    with pytest.raises(InvalidRequest) as caught:
        checked_reference(name)
    assert [v.field for v in caught.value.violations] == ["spec.image"]
    assert len(str(caught.value)) < 300


def test_a_long_hostile_name_is_refused_without_delay():
    with pytest.raises(InvalidRequest):
        checked_reference("a-" * 255 + "!")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("python", "python:latest"),
        ("docker.io/library/python:3", "python:3"),
        ("index.docker.io/a/b", "a/b:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("a@sha256:" + "0a" * 32, "a@sha256:" + "0a" * 32),
    ],
)
def test_spellings_of_one_name_share_a_short_form(name, short):
    assert familiar(name) == short
