"""How build-guest-runtime decides, what it takes of the packages, and what it says when it cannot build."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from enclaved.agent import interpreter
from enclaved.runtime.docker.options import INTERPRETER_DIR
from tests.scripts.loading import SCRIPTS, load

script = load("build-guest-runtime")
console = load("_console")


def test_script_and_daemon_mean_the_same_place_and_form():
    assert script.MOUNT_POINT == INTERPRETER_DIR
    assert script.FORMAT == interpreter.FORMAT
    assert interpreter.SYSTEM_PLACE.name == script.NAME


def test_the_loaders_name_fits_where_debians_was():
    for _, loader in script.LOADERS.values():
        assert len(f"{script.MOUNT_POINT}/ld.so") <= len(f"/lib/{loader}")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An archive in place of the real root file system."""
    archive = tmp_path / "root.tar.gz"
    archive.write_bytes(b"packages")
    monkeypatch.setattr(script, "root_archive", lambda mirror: archive)
    monkeypatch.setattr(script._debian, "architecture", lambda: "amd64")
    return archive


def made_by(monkeypatch: pytest.MonkeyPatch, manifest: str) -> list[Path]:
    """Replaces the build by one that writes a manifest; lists what was built."""
    built: list[Path] = []

    def make(link: Path, archive: Path, architecture: str, source: str) -> None:
        built.append(link)
        link.mkdir(exist_ok=True)
        (link / "manifest.json").write_text(manifest.replace("SOURCE", source))

    monkeypatch.setattr(script, "make", make)
    return built


def test_it_is_made_again_only_where_the_packages_changed_or_it_is_asked_for(packages, monkeypatch, tmp_path):
    built = made_by(monkeypatch, json.dumps({"format": script.FORMAT, "source": "SOURCE"}))
    target = tmp_path / "made" / "guest-runtime"
    for force in (False, False, True):
        assert script.build(target, mirror="", force=force) == target
    assert len(built) == 2
    packages.write_bytes(b"newer packages")
    script.build(target, mirror="", force=False)
    assert len(built) == 3


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 0, "source": "SOURCE"}'])
def test_what_another_version_left_is_made_again(packages, monkeypatch, tmp_path, manifest):
    built = made_by(monkeypatch, manifest)
    for _ in range(2):
        script.build(tmp_path / "guest-runtime", mirror="", force=False)
    assert len(built) == 2


def test_a_machine_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(script._debian, "architecture", lambda: "riscv64")
    with pytest.raises(console.Refused, match="no guest runtime for riscv64"):
        script.build(None, mirror="", force=False)


def test_a_failure_of_build_image_is_passed_on(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stdout=""))
    with pytest.raises(console.Refused, match="build-image said why"):
        script.root_archive("")


def test_only_the_interpreter_its_modules_and_libraries_are_unpacked(tmp_path):
    wanted = ["usr/bin/python3.11", "usr/lib/python3.11/os.py", "usr/lib/x86_64-linux-gnu/libz.so.1"]
    others = ["usr/bin/perl", "etc/passwd", "usr/lib/x86_64-linux-gnu/gconv/A.so", "usr/lib/python3/dist-packages/x.py"]
    (tmp_path / "file").write_text("content")
    with tarfile.open(tmp_path / "root.tar.gz", "w:gz") as archive:
        for name in [*wanted, *others]:
            archive.add(tmp_path / "file", name)
    with console.Progress("unpacking") as progress:
        script.unpack(tmp_path / "root.tar.gz", tmp_path / "root", progress)
    found = (path for path in (tmp_path / "root").rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(tmp_path / "root")) for path in found) == sorted(wanted)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("os.py", True),
        ("turtle.py", False),
        ("unittest/case.py", True),
        ("test/support/__init__.py", False),
        ("lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", True),
        ("lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so", False),
        ("sitecustomize.py", False),
        ("site.py", True),
        ("tokenize.py", True),
    ],
)
def test_modules_that_only_tests_of_python_need_stay_out(name, wanted):
    assert (script.UNWANTED_MODULES.match(name) is None) is wanted


def test_the_digest_depends_on_the_content_and_every_user_may_read(tmp_path):
    digests = []
    for folder, text in (("one", "text"), ("two", "text"), ("three", "other")):
        (tmp_path / folder / "bin").mkdir(parents=True, mode=0o700)
        (tmp_path / folder / "bin/python3.11").write_text(text)
        (tmp_path / folder / "bin/python3").symlink_to("python3.11")
        digests.append(script.seal(tmp_path / folder, "amd64", "source"))
    assert digests[0] == digests[1] != digests[2]
    assert (tmp_path / "one/bin").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "one/manifest.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "one/manifest.json").read_text())["format"] == script.FORMAT


def test_the_link_turns_to_the_new_folder_and_the_old_one_stays(tmp_path):
    link = tmp_path / "guest-runtime"
    for name in ("guest-runtime-1", "guest-runtime-2"):
        (tmp_path / name).mkdir()
        script.turn(link, tmp_path / name)
    assert link.resolve() == tmp_path / "guest-runtime-2"
    assert (tmp_path / "guest-runtime-1").is_dir()


def test_a_folder_that_is_no_link_of_ours_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "new").mkdir()
    with pytest.raises(console.Refused, match="no link of ours"):
        script.turn(tmp_path / "mine", tmp_path / "new")


def test_it_explains_itself():
    done = subprocess.run(
        [sys.executable, SCRIPTS / "build-guest-runtime", "--help"], capture_output=True, text=True, check=True
    )
    assert "sandbox.guest_runtime" in done.stdout
    assert "examples:" in done.stdout
