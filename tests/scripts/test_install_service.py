"""scripts/install-service: what it does to files; tests/systemd shows the whole on a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.loading import load

install_service = load("install-service")
console = load("_console")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_text("text")
    return path


def test_a_file_is_written_once_readable_for_all_and_replaced_when_it_changes(source: Path, tmp_path: Path, capsys):
    target = tmp_path / "new" / "file"
    assert install_service.put(source, target) is True
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("text", 0o644)
    assert install_service.put(source, target) is False
    source.write_text("other")
    assert install_service.put(source, target) is True
    assert target.read_text() == "other"
    assert capsys.readouterr().out.splitlines() == [f"writing {target}"] * 2
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_command_of_somebody_else_is_left_alone(source: Path, tmp_path: Path, capsys):
    taken, free = tmp_path / "taken", tmp_path / "free"
    taken.write_text("precious")
    install_service.link(taken, source)
    install_service.link(free, source)
    install_service.link(free, source)
    assert taken.read_text() == "precious"
    assert free.readlink() == source
    assert capsys.readouterr().out.splitlines() == [
        f"leaving {taken} alone: it is not ours. The command is {source}",
        f"linking {free} to {source}",
    ]


def test_wheels_are_told_apart_by_their_names_and_by_what_is_in_ours(tmp_path: Path):
    with pytest.raises(console.Refused, match="has no wheel of ms-enclave"):
        install_service.fingerprint(tmp_path)
    ours = tmp_path / "ms_enclave-1.0-py3-none-any.whl"
    seen = set()
    for content, other in (("a", ""), ("b", ""), ("b", "click-1.whl")):
        ours.write_text(content)
        if other:
            (tmp_path / other).touch()
        seen.add(install_service.fingerprint(tmp_path))
    assert len(seen) == 3


def test_only_root_installs(monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert install_service.main([]) == 1
    assert capsys.readouterr().err == (
        "install-service: a service can only be installed by root. Fix: sudo scripts/install-service\n"
    )
    assert install_service.main(["--uninstall"]) == 1


def test_what_the_unit_starts_is_what_is_installed():
    unit = (install_service.SYSTEMD / install_service.SERVICE).read_text()
    assert f"ExecStart={install_service.VENV}/bin/enclaved run\n" in unit
    for name in install_service.FILES:
        assert (install_service.SYSTEMD / name).exists()
