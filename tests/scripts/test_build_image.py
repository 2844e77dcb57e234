"""How build-image decides, what it removes and packs, and what it says when it cannot build."""

from __future__ import annotations

import dataclasses
import email.utils
import gzip
import io
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.loading import load

build_image = load("build-image")
console = load("_console")
debian = load("_debian")

NAME = "ms-enclave/python:3.11"
KEY = build_image.Recipe().key(debian.architecture())


class Engine:
    """An engine that has images by name and keeps what was imported."""

    host = "unix:///fake.sock"

    def __init__(self, *, arch: str = "") -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.imported: list[tuple[str, bytes, Sequence[str]]] = []
        self.removed: list[str] = []
        self.arch = arch or debian.architecture()

    def version(self) -> dict[str, Any]:
        return {"Arch": self.arch}

    def image(self, name: str) -> dict[str, Any] | None:
        return self.images.get(name)

    def import_image(self, name: str, archive: Any, *, changes: Sequence[str], sent: Any) -> None:
        self.imported.append((name, archive.read(), changes))
        sent(1)

    def remove_unused_image(self, image_id: str) -> None:
        self.removed.append(image_id)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    fake = Engine()
    monkeypatch.setattr(build_image.Engine, "from_environment", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the long build by one that writes a word; lists what it built."""
    built: list[Path] = []

    def make_root(recipe: Any, target: Path, *, mirror: str, base: Path | None = None) -> None:
        assert (base is not None and base.exists()) == bool(recipe.extends)
        built.append(target)
        target.write_bytes(f"root {len(built)}".encode())

    monkeypatch.setattr(build_image, "make_root", make_root)
    return built


def image(key: str, image_id: str = "sha256:old") -> dict[str, Any]:
    return {"Id": image_id, "Config": {"Labels": {build_image.KEY_LABEL: key}}}


def test_an_image_that_is_up_to_date_is_left_alone(
    engine: Engine, roots: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.images[NAME] = image(KEY)
    build_image.build(NAME, mirror="", force=False)
    assert (engine.imported, roots) == ([], [])
    assert capsys.readouterr().out == f"{NAME} is up to date\n"


@pytest.mark.parametrize("labels", [{build_image.KEY_LABEL: "old"}, {}, None])
def test_an_image_of_an_older_recipe_is_replaced_and_removed(
    engine: Engine, roots: list[Path], labels: dict[str, str] | None
) -> None:
    engine.images[NAME] = {"Id": "sha256:old", "Config": {"Labels": labels}}
    build_image.build(NAME, mirror="", force=False)
    assert [name for name, _, _ in engine.imported] == [NAME]
    assert engine.removed == ["sha256:old"]


def test_the_image_says_what_it_is_made_from(engine: Engine, roots: list[Path]) -> None:
    build_image.build(NAME, mirror="", force=False)
    changes = engine.imported[0][2]
    assert changes[:-1] == [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LANG=C.UTF-8",
        'CMD ["python3"]',
    ]
    assert changes[-1] == f"LABEL ms-enclave.recipe={KEY} ms-enclave.version={build_image.version()}"
    assert build_image.version()[0].isdigit()


def test_a_second_image_comes_from_the_cache(engine: Engine, roots: list[Path]) -> None:
    build_image.build(NAME, mirror="", force=False)
    build_image.build("mine:1", mirror="", force=False)
    assert len(roots) == 1
    assert [content for _, content, _ in engine.imported] == [b"root 1", b"root 1"]


def test_force_builds_again_from_packages(engine: Engine, roots: list[Path]) -> None:
    engine.images[NAME] = image(KEY)
    build_image.build(NAME, mirror="", force=True)
    build_image.build(NAME, mirror="", force=True)
    assert [content for _, content, _ in engine.imported] == [b"root 1", b"root 2"]


def test_each_recipe_has_a_name_and_a_cache_of_its_own(engine: Engine, roots: list[Path]) -> None:
    for arguments in ([], ["--recipe", "systemd"], ["--recipe", "systemd", "mine:1"], ["mine:2"]):
        assert build_image.main(arguments) == 0
    assert [name for name, _, _ in engine.imported] == [NAME, "ms-enclave/systemd:12", "mine:1", "mine:2"]
    assert [path.name.partition("-")[0] for path in roots] == ["root", "systemd"]


def test_an_image_that_extends_another_begins_with_the_root_of_that_one(engine: Engine, roots: list[Path]) -> None:
    assert build_image.main(["--recipe", "toolchain"]) == 0
    assert build_image.main([]) == 0
    assert [path.name.partition("-")[0] for path in roots] == ["root", "toolchain"]
    assert [name for name, _, _ in engine.imported] == ["ms-enclave/toolchain:12", NAME]


def test_a_change_of_the_extended_recipe_makes_the_other_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain, python = build_image.KINDS["toolchain"], build_image.KINDS["python"]
    before = toolchain.recipe.key("amd64")
    changed = dataclasses.replace(python, recipe=dataclasses.replace(python.recipe, version=2))
    monkeypatch.setitem(build_image.KINDS, "python", changed)
    assert toolchain.recipe.key("amd64") != before


def test_packages_are_added_below_the_other_root_from_one_mirror_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(debian, "_proxies", lambda: {"http": "http://proxy.example:3128", "no": "localhost"})
    root = tmp_path / "root"
    file = debian.write_apt_config(root, "http://m.example/debian", "bookworm")
    assert file == tmp_path / "root.apt.conf"
    lines = file.read_text().splitlines()
    assert f'Dir "{root}";' in lines
    assert f'DPkg::Chroot-Directory "{root}";' in lines
    assert [line for line in lines if "Proxy" in line] == ['Acquire::http::Proxy "http://proxy.example:3128";']
    assert (root / "etc/apt/sources.list").read_text() == "deb http://m.example/debian bookworm main\n"


def test_an_engine_of_another_processor_gets_no_image(engine: Engine, roots: list[Path]) -> None:
    engine.arch = "riscv64"
    with pytest.raises(console.Refused, match="runs riscv64 programs"):
        build_image.build(NAME, mirror="", force=False)
    assert roots == []


def test_without_root_there_is_one_sentence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert build_image.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("build-image: building an image needs root. Fix: sudo scripts/build-image, or ")
    assert said.count("\n") == 1


def test_without_debootstrap_on_a_foreign_machine_there_is_one_sentence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert build_image.main([]) == 1
    assert "only Debian-like machines" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"suite": "trixie"}, {"packages": ("python3",)}, {"version": 2}, {"written": ()}])
def test_every_change_of_the_recipe_changes_its_key(change: dict[str, Any]) -> None:
    assert dataclasses.replace(build_image.Recipe(), **change).key("amd64") != build_image.Recipe().key("amd64")


def test_the_processor_is_part_of_the_key() -> None:
    assert build_image.Recipe().key("amd64") != build_image.Recipe().key("arm64")


def make_tree(root: Path, names: Sequence[str], *, mtime: int) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        os.utime(root / name, (mtime, mtime))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(folder, (mtime, mtime))


def packed(root: Path, epoch: int) -> bytes:
    target = root.with_suffix(".tar.gz")
    build_image.pack(root, target, epoch, console.Progress("packing", stream=io.StringIO()))
    return target.read_bytes()


def test_the_same_files_give_the_same_archive(tmp_path: Path) -> None:
    """Whenever they were written, in whatever order, and whatever the folder is called."""
    names = ["etc/passwd", "usr/bin/python3", "bin/sh"]
    make_tree(tmp_path / "one", names, mtime=2_000_000_000)
    make_tree(tmp_path / "two", names[::-1], mtime=2_100_000_000)
    assert packed(tmp_path / "one", 1_700_000_000) == packed(tmp_path / "two", 1_700_000_000)


def test_no_file_of_the_archive_is_newer_than_asked_and_older_ones_keep_their_time(tmp_path: Path) -> None:
    make_tree(tmp_path / "new", ["a"], mtime=2_000_000_000)
    make_tree(tmp_path / "old", ["a"], mtime=1_000_000_000)
    times = {}
    for name in ("new", "old"):
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed(tmp_path / name, 1_700_000_000)))) as archive:
            times[name] = archive.getmember("a").mtime
    assert times == {"new": 1_700_000_000, "old": 1_000_000_000}


def test_links_and_modes_survive_the_packing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_tree(root, ["bin/python3"], mtime=1_000_000_000)
    (root / "bin/python3").chmod(0o4755)
    (root / "bin/python").symlink_to("python3")
    (root / "bin/python3.11").hardlink_to(root / "bin/python3")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed(root, 1_700_000_000)))) as archive:
        members = {member.name: member for member in archive}
    assert members["bin/python3"].mode == 0o4755
    assert members["bin/python"].linkname == "python3"
    assert members["bin/python3.11"].islnk()
    assert list(members) == sorted(members)
    assert {member.uname for member in members.values()} == {""}


def test_what_belongs_to_the_building_machine_is_removed(tmp_path: Path) -> None:
    gone = [
        "etc/hostname",
        "etc/resolv.conf",
        "etc/shadow-",
        "usr/share/doc/bash/README",
        "usr/share/man/man1/bash.1",
        "usr/share/locale/de/x.mo",
        "var/lib/apt/lists/mirror_InRelease",
        "var/log/apt/history.log",
    ]
    kept = ["etc/shadow", "usr/share/doc/bash/copyright", "usr/share/zoneinfo/UTC", "var/lib/dpkg/status"]
    make_tree(tmp_path, gone + kept, mtime=1_000_000_000)
    (tmp_path / "usr/share/doc/bash-twin").symlink_to("bash")
    build_image.trim(build_image.Recipe(), tmp_path)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert "break-system-packages = true" in (tmp_path / "etc/pip.conf").read_text()


def test_a_failed_build_leaves_no_tree_and_keeps_the_older_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "root-amd64-old.tar.gz").write_bytes(b"old")
    make_tree(tmp_path / "building", ["what/a/killed/build/left"], mtime=1_000_000_000)

    def fail(recipe: Any, root: Path, mirror: str, epoch: int) -> None:
        root.mkdir()
        raise console.Refused("no room")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(build_image, "ensure_debootstrap", lambda: None)
    monkeypatch.setattr(build_image, "debootstrap", fail)
    monkeypatch.setattr(debian, "choose_mirror", lambda candidates, suite: debian.Mirror("http://m/debian", 1))
    with pytest.raises(console.Refused, match="no room"):
        build_image.make_root(build_image.Recipe(), tmp_path / "root-amd64-new.tar.gz", mirror="")
    assert [path.name for path in tmp_path.iterdir()] == ["root-amd64-old.tar.gz"]


def test_the_addresses_come_from_both_forms_of_apt_sources_then_debian(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://off.example/debian bookworm main\n"
        "deb http://one.example/debian/ bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://two.example/debian bookworm main\n"
        "deb-src http://source.example/debian bookworm main\n"
        "deb cdrom:[Debian]/ bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "more.sources").write_text(
        "Types: deb\nURIs: http://three.example/debian file:/mnt/debian\nSuites: bookworm\n"
    )
    assert list(debian.mirrors(tmp_path)) == [
        "http://one.example/debian",
        "https://two.example/debian",
        "http://three.example/debian",
    ]


def test_a_machine_without_apt_names_no_mirror(tmp_path: Path) -> None:
    assert list(debian.mirrors(tmp_path / "nowhere")) == []


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serves texts by path on a loopback port; the key ``""`` is the address."""
    pages: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (http.server's name)
            pass

    monkeypatch.setattr(debian, "_proxies", dict)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        pages[""] = f"http://127.0.0.1:{server.server_address[1]}"
        yield pages
        server.shutdown()
        thread.join()


def release(origin: str, codename: str = "bookworm") -> str:
    return f"Origin: {origin}\nCodename: {codename}\nDate: Sat, 11 Jul 2026 10:16:00 UTC\nSHA256:\n 12 x\n"


def test_the_first_address_that_serves_debian_itself_is_chosen(web: dict[str, str]) -> None:
    """Sources of other packages often name Debian's suite as well."""
    web["/other/dists/bookworm/Release"] = release("Somebody")
    web["/newer/dists/bookworm/Release"] = release("Debian", "trixie")
    web["/broken/dists/bookworm/Release"] = "Origin: Debian\nCodename: bookworm\n"
    web["/debian/dists/bookworm/Release"] = release("Debian")
    names = ["missing", "other", "newer", "broken", "debian", "never-asked"]
    chosen = debian.choose_mirror([f"{web['']}/{name}" for name in names], "bookworm")
    assert chosen.url == f"{web['']}/debian"
    assert chosen.released_s == int(email.utils.parsedate_to_datetime("Sat, 11 Jul 2026 10:16:00 UTC").timestamp())


def test_no_mirror_at_all_is_one_sentence_with_those_that_were_tried(web: dict[str, str]) -> None:
    with pytest.raises(console.Refused, match=r"no Debian mirror answers \(tried .*/debian\)\. Fix: name one"):
        debian.choose_mirror([f"{web['']}/debian", f"{web['']}/debian"], "bookworm")


def test_the_root_file_system_alone_needs_no_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, roots: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build_image.Engine, "from_environment", lambda: pytest.fail("it asked for the engine"))
    for _ in range(2):
        assert build_image.main(["--root-only"]) == 0
        assert capsys.readouterr().out == f"{roots[0]}\n"
    assert [path.name for path in roots] == [f"root-{debian.architecture()}-{KEY}.tar.gz"]
