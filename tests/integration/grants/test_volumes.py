"""Host directories in sandboxes: as whom, how, and what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat

import pytest
from ms_enclave.errors import EnclaveError, InvalidRequest, PolicyDenied

from enclaved.core import host_paths
from tests.integration.grants.conftest import OWNER, House, said


async def test_a_directory_is_read_by_the_sandboxes_own_user_and_written_by_nobody(house: House):
    place = house.place("data")
    (place / "input").write_text("hello")
    sandbox = await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "ro"}})
    assert await said(sandbox, "cat /data/input") == "hello"
    result = await sandbox.execute_command("touch /data/new")
    assert "Read-only file system" in (result.stderr or "")
    info = await sandbox.refresh()
    assert "waived" not in info.metadata
    assert info.metadata["uid"] >= 1_900_000_000
    assert info.config["volumes"] == {str(place): {"bind": "/data", "mode": "ro"}}


async def test_a_directory_that_can_be_written_to_lends_the_sandbox_its_owner_and_says_so(house: House):
    place = house.place("out", owner=OWNER, mode=0o700)
    sandbox = await house.sandbox(volumes={str(place): {"bind": "/sandbox/out", "mode": "rw"}})
    uid, gid, made = (await said(sandbox, "id -u; id -g; echo 1 > out/made; stat -c %u:%g out/made")).split()
    # Its group is its own number: the owner's may be the number of a group of the host that means something.
    assert (int(uid), int(gid) >= 1_900_000_000, made) == (OWNER, True, f"{OWNER}:{gid}")
    found = (place / "made").stat()
    assert (found.st_uid, found.st_gid) == (OWNER, int(gid))
    assert (
        await said(sandbox, "echo 2 >> out/made; cat out/made; mkdir out/in; mv out/made out/in; ls out") == "1\n2\nin"
    )
    info = await sandbox.refresh()
    assert (info.metadata["uid"], info.metadata["waived"]) == (OWNER, ["uid_separation"])
    # Another one may share the user, and still they are apart.
    other = await house.sandbox(volumes={str(place): {"bind": "/out", "mode": "rw"}})
    assert await said(other, "id -g") != gid
    await other.start_execution("shell_executor", command="sleep 600")
    commands = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert "sleep 600" in await said(other, commands)
    assert "sleep 600" not in await said(sandbox, commands)
    # Whoever is the owner is not the guest: its socket is closed to programs.
    assert "denied" in ((await sandbox.execute_command("ls /run/enclave/socket")).stderr or "")


async def test_no_program_leaves_a_file_on_the_host_that_runs_as_its_owner(house: House):
    place = house.place("data", owner=OWNER)
    writer = await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "rw"}})
    result = await writer.execute_command(
        "cp /bin/sh /data/sh; chmod 6755 /data/sh || chmod 0755 /data/sh; touch /data/x"
    )
    assert "Operation not permitted" in (result.stderr or "")
    assert stat.S_IMODE((place / "sh").stat().st_mode) == 0o755
    assert await said(writer, "mkdir /data/inner && chmod 1777 /data/inner && echo done") == "done"
    # Elsewhere the bits mean nothing, and programs that set them go on.
    other = await house.sandbox()
    assert await said(other, "touch f && chmod 6755 f && stat -c %a f") == "6755"


async def test_a_file_can_be_mounted_too(house: House):
    place = house.place("files")
    (place / "config").write_text("x = 1")
    sandbox = await house.sandbox(volumes={str(place / "config"): {"bind": "/opt/app/config", "mode": "ro"}})
    assert await said(sandbox, "cat /opt/app/config") == "x = 1"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("nowhere", InvalidRequest, "No such file"),
        ("link", PolicyDenied, "passes through the link"),
        ("link/inner", PolicyDenied, "passes through the link"),
        ("pipe", InvalidRequest, "neither a directory nor a regular file"),
        ("closed", InvalidRequest, "has mode 0700 and belongs to uid 0"),
        ("file/below", InvalidRequest, "Not a directory"),
    ],
)
async def test_what_cannot_be_mounted_is_named_with_the_reason(house: House, name: str, error: type, text: str):
    target = house.place("target")
    (target / "inner").mkdir()
    (house.folder / "link").symlink_to(target)
    os.mkfifo(house.folder / "pipe")
    house.place("closed", mode=0o700)
    (house.folder / "file").touch()
    with pytest.raises(error, match=text) as caught:
        await house.sandbox(volumes={str(house.folder / name): {"bind": "/data", "mode": "ro"}})
    assert name.split("/")[0] in str(caught.value)
    assert await house.manager.list_sandboxes() == []


async def test_no_sandbox_writes_as_root_or_as_two_users(house: House):
    one, two = house.place("one", owner=OWNER), house.place("two", owner=OWNER + 1)
    with pytest.raises(PolicyDenied, match="belongs to root"):
        await house.sandbox(volumes={str(house.place("roots")): {"bind": "/data", "mode": "rw"}})
    volumes = {str(one): {"bind": "/one", "mode": "rw"}, str(two): {"bind": "/two", "mode": "rw"}}
    with pytest.raises(InvalidRequest, match="must belong to one user"):
        await house.sandbox(volumes=volumes)
    place = house.place("theirs", owner=1_900_000_005)
    with pytest.raises(PolicyDenied, match="one of those for sandboxes"):
        await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "rw"}})
    with pytest.raises(InvalidRequest, match="a pool empties"):
        await house.manager.initialize_pool(1, config={"volumes": {str(one): {"bind": "/one", "mode": "rw"}}})
    assert list(one.iterdir()) == []


async def test_a_directory_that_is_swapped_while_its_container_is_made_is_not_served(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    place, secret = house.place("data"), house.place("secret")
    (secret / "token").write_text("nobody's business")
    found = host_paths.user_for

    def swap(*arguments):
        """The worst moment: after every look at the path, before the engine takes it."""
        place.rename(house.folder / "was")
        place.symlink_to(secret)
        return found(*arguments)

    monkeypatch.setattr("enclaved.core.mounting.user_for", swap)
    with pytest.raises(EnclaveError, match="something else was mounted"):
        await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "ro"}})
    assert await house.manager.list_sandboxes() == []


async def test_a_sandbox_that_lies_about_what_was_mounted_is_not_believed(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    place, secret = house.place("data"), house.place("secret")
    found = host_paths.user_for

    def swap(*arguments):
        place.rename(house.folder / "was")
        place.symlink_to(secret)
        return found(*arguments)

    async def say_all_is_well(*_arguments: object) -> None:
        """What the look from inside comes to where the image was made to deceive it."""

    monkeypatch.setattr("enclaved.core.mounting.user_for", swap)
    monkeypatch.setattr("enclaved.core.mounting.look_again", say_all_is_well)
    with pytest.raises(EnclaveError, match="something else was mounted"):
        await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "ro"}})
    assert await house.manager.list_sandboxes() == []


async def test_what_is_mounted_below_a_directory_on_the_host_stays_out(house: House):
    place = house.place("data")
    (place / "below").mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "none", str(place / "below"))
    assert await mount.wait() == 0
    try:
        (place / "below" / "theirs").touch()
        sandbox = await house.sandbox(volumes={str(place): {"bind": "/data", "mode": "ro"}})
        assert await said(sandbox, "ls /data/below") == ""
    finally:
        unmount = await asyncio.create_subprocess_exec("umount", str(place / "below"))
        assert await unmount.wait() == 0


async def test_deleting_a_sandbox_leaves_the_host_directory_as_it_is(house: House):
    place = house.place("keep", owner=OWNER)
    sandbox = await house.sandbox(volumes={str(place): {"bind": "/sandbox/keep", "mode": "rw"}})
    await said(sandbox, "echo kept > keep/file")
    await sandbox.stop()
    await house.manager.delete_sandbox(sandbox.id)
    assert (place / "file").read_text() == "kept\n"
    shutil.rmtree(place)
