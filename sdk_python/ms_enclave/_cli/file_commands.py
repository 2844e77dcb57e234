"""The commands for the files of a sandbox: ls, stat, mkdir, mv, rm, find, watch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import unicodedata
from collections.abc import Coroutine, Sequence
from typing import Any

import click

from ms_enclave._cli import listing
from ms_enclave._cli.copying import cp
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._model.files import ChangeKind, FileInfo, FileType
from ms_enclave._transports.base import FileCalls

_KINDS = {FileType.REGULAR: "-", FileType.DIRECTORY: "d", FileType.SYMLINK: "l", FileType.OTHER: "?"}


@click.group(no_args_is_help=False)
def files() -> None:
    """Looks at, changes, searches and watches the files of a sandbox. See also "ms-enclave cp".

    \b
    Examples:
      ms-enclave files ls box
      ms-enclave files find box '**/*.py' --text TODO
      ms-enclave files watch box src -R
    """


@files.command()
@click.argument("sandbox")
@click.argument("path", default=".")
@click.option("-R", "--recursive", is_flag=True, help="List what is below too.")
@click.option("--glob", default="", metavar="GLOB", help="Only what matches: * ? [abc], and ** for any directories.")
@address_option
@json_option
def ls(sandbox: str, path: str, recursive: bool, glob: str, address: str | None, as_json: bool) -> None:
    """Lists a directory, by name.

    \b
    Examples:
      ms-enclave files ls box results
      ms-enclave files ls box -R --json | jq -r '.[].path'
    """
    _list(sandbox, path, recursive, glob, address, as_json)


@files.command()
@click.argument("sandbox")
@click.argument("path")
@address_option
@json_option
def stat(sandbox: str, path: str, address: str | None, as_json: bool) -> None:
    """Shows what a path is. A link is shown as itself.

    \b
    Example:
      ms-enclave files stat box results/model.bin --json | jq .size_bytes
    """
    info = asyncio.run(_with(address, lambda calls: calls.stat(sandbox, path)))
    if as_json:
        print_json(_as_json(info))
    else:
        _show([info])


@files.command()
@click.argument("sandbox")
@click.argument("path")
@click.option("-p", "--parents", is_flag=True, help="Make missing directories above it too.")
@click.option("-m", "--mode", default="755", metavar="MODE", help="Permissions, in octal. [755]")
@address_option
@json_option
@click.pass_context
def mkdir(
    context: click.Context, /, sandbox: str, path: str, parents: bool, mode: str, address: str | None, as_json: bool
) -> None:
    """Makes a directory. One that is there is left alone.

    \b
    Example:
      ms-enclave files mkdir -p box data/raw
    """
    try:
        bits = int(mode, 8)
    except ValueError:
        raise click.UsageError("--mode: is no octal number", context) from None
    asyncio.run(_with(address, lambda calls: calls.make_directory(sandbox, path, mode=bits, create_parents=parents)))
    if as_json:
        print_json({"path": path})


@files.command()
@click.argument("sandbox")
@click.argument("path")
@click.argument("target")
@click.option("--replace", is_flag=True, help="A file that is there may be replaced.")
@address_option
@json_option
def mv(sandbox: str, path: str, target: str, replace: bool, address: str | None, as_json: bool) -> None:
    """Gives a file, link or directory of a sandbox another path.

    \b
    Example:
      ms-enclave files mv box draft.txt final.txt
    """
    asyncio.run(_with(address, lambda calls: calls.move(sandbox, path, target, replace=replace)))
    if as_json:
        print_json({"path": path, "target": target})


@files.command()
@click.argument("sandbox")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Remove directories with all that is in them.")
@click.option("-f", "--force", is_flag=True, help="What is not there is fine.")
@address_option
@json_option
def rm(sandbox: str, paths: Sequence[str], recursive: bool, force: bool, address: str | None, as_json: bool) -> None:
    """Removes files, links and empty directories of a sandbox.

    \b
    Example:
      ms-enclave files rm -r box build
    """

    async def removed(calls: FileCalls) -> None:
        for path in paths:
            await calls.remove(sandbox, path, recursive=recursive, missing_ok=force)

    asyncio.run(_with(address, removed))
    if as_json:
        print_json({"removed": list(paths)})


@files.command()
@click.argument("sandbox")
@click.argument("glob", metavar="GLOB")
@click.argument("path", default=".")
@click.option("--text", metavar="PATTERN", help="Show the lines that match: a regular expression of Python.")
@click.option("-F", "--literal", is_flag=True, help="The pattern is a text.")
@click.option("-i", "--ignore-case", is_flag=True, help="Upper and lower case are the same.")
@click.option("--max", "matches_max", type=click.IntRange(1, 10_000), default=1000, help="Lines at most. [1000]")
@address_option
@json_option
def find(
    sandbox: str,
    glob: str,
    path: str,
    text: str | None,
    literal: bool,
    ignore_case: bool,
    matches_max: int,
    address: str | None,
    as_json: bool,
) -> None:
    """Finds files by their paths, and with --text lines in them.

    GLOB knows * ? [abc], and ** for any directories. Binary files have no lines.

    \b
    Examples:
      ms-enclave files find box '**/*.log'
      ms-enclave files find box '**' src --text 'def \\w+_at' -i
    """
    if text is None:
        _list(sandbox, path, True, glob, address, as_json, only_paths=True)
        return
    how: dict[str, Any] = {"literal": literal, "ignore_case": ignore_case, "matches_max": matches_max}
    result = asyncio.run(_with(address, lambda calls: calls.search(sandbox, path, text, glob=glob, **how)))
    if as_json:
        matches = [{"path": match.path, "line": match.line, "text": match.text} for match in result.matches]
        print_json({"matches": matches, "truncated": result.truncated})
        return
    for match in result.matches:
        click.echo(f"{printable(match.path)}:{match.line}:{printable(match.text)}")
    if result.truncated:
        click.echo(f"more than {matches_max} lines match; see --max", err=True)


@files.command()
@click.argument("sandbox")
@click.argument("path", default=".")
@click.option("-R", "--recursive", is_flag=True, help="Watch what is below too, at most 1024 directories.")
@address_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON value for each change, one a line.")
def watch(sandbox: str, path: str, recursive: bool, address: str | None, as_json: bool) -> None:
    """Tells what changes in a directory until Ctrl-C, or until the directory is gone.

    Kinds: created, modified, removed, attributes; "overflow" if changes were lost; "gone" at the end.

    \b
    Example:
      ms-enclave files watch box src -R
    """

    async def watched(calls: FileCalls) -> None:
        async with contextlib.aclosing(calls.watch(sandbox, path, recursive=recursive)) as changes:
            async for change in changes:
                if change is None:
                    click.echo(f"watching {path}", err=True)
                elif as_json:
                    shown = {"change": change.kind.value, "path": change.path, "is_directory": change.is_directory}
                    click.echo(json.dumps(shown))
                else:
                    slash = "/" if change.is_directory and change.kind is not ChangeKind.GONE else ""
                    click.echo(f"{change.kind.value} {printable(change.path)}{slash}")

    asyncio.run(_with(address, watched))


def printable(text: str) -> str:
    """Makes a stranger's text safe for a terminal: characters that control one are shown as escapes."""
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


async def _with(address: str | None, work: Any) -> Any:
    calls = (await running_daemon(address)).files
    doing: Coroutine[Any, Any, Any] = work(calls)
    return await doing


def _list(
    sandbox: str,
    path: str,
    recursive: bool,
    glob: str,
    address: str | None,
    as_json: bool,
    *,
    only_paths: bool = False,
) -> None:
    async def listed(calls: FileCalls) -> list[FileInfo]:
        return [info async for info in calls.list(sandbox, path, recursive=recursive, glob=glob)]

    found = asyncio.run(_with(address, listed))
    if as_json:
        print_json([_as_json(info) for info in found])
    elif only_paths:
        for info in found:
            click.echo(printable(info.path))
    else:
        _show(found)


def _show(infos: Sequence[FileInfo]) -> None:
    rows = listing.table("MODE", "UID", "SIZE", "MODIFIED", "PATH")
    for info in infos:
        target = f" -> {printable(info.link_target)}" if info.type is FileType.SYMLINK else ""
        rows.add_row(
            f"{_KINDS[info.type]}{info.mode:04o}",
            str(info.uid),
            str(info.size_bytes),
            f"{info.modified_at:%Y-%m-%d %H:%M:%S}",
            listing.text(printable(info.path) + target),
        )
    listing.print_table(rows)


def _as_json(info: FileInfo) -> dict[str, Any]:
    return {
        "path": info.path,
        "type": info.type.value,
        "size_bytes": info.size_bytes,
        "mode": f"{info.mode:04o}",
        "modified_at": info.modified_at.isoformat(),
        "uid": info.uid,
        "link_target": info.link_target or None,
    }


COMMANDS = (cp, files)
