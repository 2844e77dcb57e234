"""Traps for whoever fetches and sends files."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import tarfile
from collections.abc import AsyncIterator
from typing import Final

from ms_enclave.v1 import file_service_pb2 as file_pb

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import MIB, ActOf, Answer, Attack, Category, Evidence, Judge, Program, Told
from enclaved.doctor.attacks.judges import REFUSED_CODES, all_of, answers, finds, memory_below

_HOST_TEXT: Final = b"root:"
"""What stands in every file of accounts, also in that of an image."""
_BOMB_BYTES: Final = 192 * MIB


async def _read(act: Act, path: str) -> bytes:
    """Reads a file, at most 4 MiB; records how the call was answered under its path."""
    found = bytearray()

    async def reading() -> None:
        async for piece in act.stubs.files.ReadFile(file_pb.ReadFileRequest(sandbox_id=act.sandbox_id, path=path)):
            found.extend(piece.data)
            if len(found) > 4 * MIB:
                return

    await act.ask(path, reading())
    return bytes(found)


async def _unpack(act: Act, name: str, data: bytes) -> None:
    async def steps() -> AsyncIterator[file_pb.WriteArchiveRequest]:
        yield file_pb.WriteArchiveRequest(open=file_pb.OpenArchive(sandbox_id=act.sandbox_id, path="unpacked"))
        for start in range(0, len(data), 65536):
            yield file_pb.WriteArchiveRequest(data=data[start : start + 65536])

    await act.ask(name, act.stubs.files.WriteArchive(steps()))


def _tar(*members: tuple[str, bytes, str], content: bytes = b"trap") -> bytes:
    """Makes an archive of (name, type, target of the link)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content) if member.size else None)
    return packed.getvalue()


async def _links(act: Act) -> Evidence:
    await act.run(
        Program(
            """
for name, target in (("etc", "/etc/passwd"), ("proc", "/proc/1/environ"), ("self", "/proc/self/environ"),
                     ("up", "../" * 12 + "etc/passwd"), ("dir", "/etc"), ("magic", "/proc/self/cwd/../etc/passwd")):
    os.symlink(target, name)
tell("made", True)
"""
        )
    )
    texts = [await _read(act, path) for path in ("etc", "proc", "self", "up", "dir/passwd", "magic", "../etc/passwd")]
    return act.evidence(read=sum(len(text) for text in texts))


async def _specials(act: Act) -> Evidence:
    await act.run(
        Program(
            """
os.mkfifo("fifo")
os.symlink("/dev/zero", "zero")
os.symlink("/dev/stdin", "stdin")
os.symlink("loop", "loop")
made = socket.socket(socket.AF_UNIX)
made.bind("socket")
"""
        )
    )
    texts = [await _read(act, path) for path in ("fifo", "zero", "stdin", "loop", "socket", "/dev/zero", "/proc/kmsg")]
    return act.evidence(read=sum(len(text) for text in texts))


async def _paths(act: Act) -> Evidence:
    for name, path in (
        ("dots", "../../../../etc/passwd"),
        ("absolute", "/etc/passwd"),
        ("nul", "a\0b"),
        ("long", "x" * 5000),
        ("deep", "/".join(["d"] * 2000)),
        ("empty", ""),
        ("proc", "/proc/1/root/etc/passwd"),
    ):
        stat = file_pb.StatFileRequest(sandbox_id=act.sandbox_id, path=path)
        remove = file_pb.RemoveFileRequest(sandbox_id=act.sandbox_id, path=path, recursive=True)
        await act.ask(f"stat {name}", act.stubs.files.StatFile(stat))
        await act.ask(f"remove {name}", act.stubs.files.RemoveFile(remove))
    return act.evidence()


async def _archives(act: Act) -> Evidence:
    """Sends archives whose members lead out, and looks from inside whether anything came out of the directory."""
    name = f"trap-{act.nonce}"
    for kind, members in {
        "dots": [(f"../../../../tmp/{name}", tarfile.REGTYPE, "")],
        "link out": [("out", tarfile.SYMTYPE, "/tmp"), (f"out/{name}", tarfile.REGTYPE, "")],
        "link up": [("up", tarfile.SYMTYPE, "../../tmp"), (f"up/{name}", tarfile.REGTYPE, "")],
        "hard link": [("hard", tarfile.LNKTYPE, "/etc/passwd")],
        "device": [("device", tarfile.CHRTYPE, "")],
        "pipe": [("pipe", tarfile.FIFOTYPE, "")],
    }.items():
        await _unpack(act, kind, _tar(*members))
    await _unpack(act, "cut", _tar(("whole", tarfile.REGTYPE, ""), content=b"x" * 100000)[:50000])
    await _unpack(act, "junk", b"\x1f\x8b" + b"junk" * 2000)
    seen = await act.run(
        Program(f"tell('out', [p for p in ('/tmp/{name}', '/{name}', './{name}') if os.path.lexists(p)])\n")
    )
    return act.evidence(seen, out=act.told(seen).get("out", "nothing was told"))


async def _bomb(act: Act) -> Evidence:
    """Sends an archive that is small and becomes larger than the working directory."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as squeezed:
        member = tarfile.TarInfo("bomb")
        member.size = _BOMB_BYTES
        squeezed.write(member.tobuf())
        for _ in range(_BOMB_BYTES // MIB):
            squeezed.write(bytes(MIB))
    await _unpack(act, "bomb", packed.getvalue())
    return act.evidence()


async def _names(act: Act) -> Evidence:
    made = await act.run(
        Program(
            """
names = [b"new\\nline", b"-rf", b"\\xff\\xfe\\x80", b"\\x1b[2Jclear", b"n" * 255, b"..hidden", b" ", b"a\\rb", b"%s%n",
         b"$(reboot)", b'"quoted"', "\\u202ertl".encode()]
os.mkdir("odd")
for name in names:
    os.close(os.open(b"odd/" + name, os.O_CREAT | os.O_WRONLY))
tell("made", len(names))
"""
        )
    )
    listed: list[str] = []

    async def listing() -> None:
        request = file_pb.ListDirectoryRequest(sandbox_id=act.sandbox_id, path="odd")
        async for page in act.stubs.files.ListDirectory(request):
            listed.extend(file.path for file in page.files)

    await act.ask("list", listing())
    packed = 0

    async def packing() -> None:
        nonlocal packed
        async for piece in act.stubs.files.ReadArchive(
            file_pb.ReadArchiveRequest(sandbox_id=act.sandbox_id, path="odd")
        ):
            packed += len(piece.data)

    await act.ask("pack", packing())
    return act.evidence(made, missing=(_number(act.told(made).get("made")) or -1) - len(listed))


async def _race(act: Act) -> Evidence:
    """Reads a path while a program swaps it for a link to a file outside, again and again."""
    program = Program(
        """
os.mkdir("real")
with open("real/passwd", "w") as file:
    file.write("mine")
os.symlink("/etc", "link")
os.rename("real", "swap")
tell("ready", True)
end = time.monotonic() + 6
while time.monotonic() < end:
    os.rename("swap", "real"); os.rename("link", "swap")
    os.rename("swap", "link"); os.rename("real", "swap")
""",
        timeout_s=20,
    )
    flipping = await act.start(program, act.sandbox_id)
    outside, inside = 0, 0
    deadline = asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < deadline:
        text = await _read(act, "swap/passwd")
        outside += text.startswith(_HOST_TEXT)
        inside += text == b"mine"
    await flipping
    act.answers["swap/passwd"] = Answer("OK" if inside else "NOT_FOUND")
    return act.evidence(outside=outside)


async def _growing(act: Act) -> Evidence:
    """Fetches a file that grows as long as it is fetched."""
    growing = await act.start(
        Program(
            """
tell("ready", True)
end = time.monotonic() + 4
with open("grows", "ab", buffering=0) as file:
    while time.monotonic() < end:
        file.write(b"x" * 4096)
        if file.tell() > 8 << 20:
            file.truncate(0)
            file.seek(0)
""",
            timeout_s=20,
        ),
        act.sandbox_id,
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            await _read(act, "grows")
    await growing
    return act.evidence()


async def _tree(act: Act) -> Evidence:
    """Lists, packs and removes a tree that is deeper than any path may be long."""
    await act.run(
        Program(
            "for _ in range(400):\n    os.mkdir('deeper-and-deeper')\n    os.chdir('deeper-and-deeper')\n"
            "open('end', 'w')\n"
        )
    )
    files = act.stubs.files

    async def listing() -> None:
        request = file_pb.ListDirectoryRequest(sandbox_id=act.sandbox_id, path=".", recursive=True)
        async for _ in files.ListDirectory(request):
            pass

    await act.ask("list", listing())
    remove = file_pb.RemoveFileRequest(sandbox_id=act.sandbox_id, path="deeper-and-deeper", recursive=True)
    await act.ask("remove", files.RemoveFile(remove))
    return act.evidence()


def _number(value: Told | None) -> int:
    return value if isinstance(value, int) else 0


def _attack(name: str, sentence: str, judge: Judge, act: ActOf, *, memory: bool = False) -> Attack:
    return Attack(
        f"artefacts.{name}",
        Category.ARTEFACTS,
        sentence,
        judge,
        act=act,
        alone=memory,
        needs=frozenset({"memory"} if memory else ()),
    )


def _nothing_read(value: object) -> bool:
    return value == 0


ATTACKS: Final = (
    _attack(
        "links",
        "Leaves links to files of the host for whoever fetches them.",
        all_of(answers(least=7), finds("read", _nothing_read, "nothing was read through them")),
        _links,
    ),
    _attack(
        "pipes-and-devices",
        "Leaves pipes, sockets and endless devices for whoever fetches them.",
        all_of(answers(least=7), finds("read", _nothing_read, "nothing was read of them")),
        _specials,
    ),
    _attack("paths", "Is asked for paths that lead out, or that nothing can take.", answers(least=14), _paths),
    _attack(
        "archives",
        "Is sent archives whose members lead out, or are devices, or end in the middle.",
        all_of(
            answers(*REFUSED_CODES, "OK", least=8),
            finds("out", lambda value: value == [], "nothing came out of the directory"),
        ),
        _archives,
    ),
    _attack(
        "archive-bomb",
        "Is sent a small archive that becomes 192 MiB.",
        all_of(answers("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", least=1), memory_below(48 * MIB)),
        _bomb,
        memory=True,
    ),
    _attack(
        "names",
        "Gives files names that confuse whoever lists or packs them.",
        all_of(answers("OK", least=2), finds("missing", _nothing_read, "every name is listed")),
        _names,
    ),
    _attack(
        "races",
        "Swaps a directory for a link to another one while a file in it is read.",
        all_of(finds("outside", _nothing_read, "nothing from outside was read"), answers("OK", "NOT_FOUND")),
        _race,
    ),
    _attack(
        "growing-file",
        "Lets a file grow and shrink for as long as it is read.",
        answers("OK", "FAILED_PRECONDITION", "NOT_FOUND", "ABORTED"),
        _growing,
    ),
    _attack(
        "deep-tree",
        "Makes a tree deeper than paths can be long.",
        answers(*REFUSED_CODES, "OK", least=2),
        _tree,
    ),
)
