"""Attacks a daemon with the whole suite, or a part of it: one of the doctor's own, or one that runs already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio

from enclaved.config import Settings
from enclaved.daemon import prune_doctors
from enclaved.doctor.attacks.base import Attack, Category
from enclaved.doctor.attacks.suite import SUITE
from enclaved.doctor.connection import BadAddress, Daemon, Stubs, channel_to
from enclaved.doctor.engine import EngineSilent, EngineView
from enclaved.doctor.own_daemon import DaemonFailed, own_daemon, private_directory
from enclaved.doctor.report import AttackReport
from enclaved.doctor.stage import NeighbourFailed, Result, stage
from enclaved.doctor.witness import witness


class AttackFailed(Exception):
    """There was nothing to attack; the text says why and what to do."""


class NoSuchAttack(Exception):
    """No attack has this id or category; the text lists what there is."""


def chosen(categories: Sequence[str] = (), ids: Sequence[str] = ()) -> tuple[Attack, ...]:
    """Returns the attacks of categories, or those with ids; all without either. Raises `NoSuchAttack`."""
    unknown = sorted(set(ids) - {attack.id for attack in SUITE})
    if unknown:
        raise NoSuchAttack(f"no attack is called {', '.join(unknown)}; 'enclaved doctor --list' names them")
    there = [category.value for category in Category]
    odd = sorted(set(categories) - set(there))
    if odd:
        raise NoSuchAttack(f"no category is called {', '.join(odd)}; there are {', '.join(there)}")
    if not categories and not ids:
        return SUITE
    return tuple(attack for attack in SUITE if attack.category.value in categories or attack.id in ids)


async def attack(
    settings: Settings,
    file: Path | None,
    attacks: Sequence[Attack],
    *,
    address: str = "",
    keep_going: bool = True,
    done: Callable[[Result], None] = lambda result: None,
) -> AttackReport:
    """Plays attacks against a daemon and returns what they came to; ``done`` is told of each.

    Without an ``address`` the daemon is one of its own with the configuration of ``file``, which the doctor starts and
    ends. Without ``keep_going`` it stops after the first failure. Raises `AttackFailed`.
    """
    started = time.monotonic()
    results: list[Result] = []
    problems: list[str] = []
    try:
        async with AsyncExitStack() as stack:
            await prune_doctors(settings)
            directory = await stack.enter_async_context(private_directory())
            engine: EngineView | None = EngineView(settings.engine.url)
            if address:
                channel = await stack.enter_async_context(channel_to(address))
                path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
                daemon = Daemon(channel, Stubs(channel), socket_path=path)
            else:
                daemon = await stack.enter_async_context(own_daemon(directory, settings, file))
            found = await stack.enter_async_context(witness(directory))
            made = await stack.enter_async_context(stage(daemon, engine, found, settings))
            if keep_going:
                results = await made.play_all(attacks, done)
            else:
                for one in attacks:
                    results += await made.play_all([one], done)
                    if not results[-1].is_good:
                        break
            if not await daemon.lives():
                problems.append("the daemon does not answer any more")
    except DaemonFailed as error:
        raise AttackFailed(str(error)) from error
    except BadAddress as error:
        raise AttackFailed(str(error)) from error
    except NeighbourFailed as error:
        raise AttackFailed(f"no program runs in a sandbox of this daemon: {error}") from error
    except EngineSilent as error:
        raise AttackFailed(f"{error}; start the engine, or name it with engine.url") from error
    except grpc.aio.AioRpcError as error:
        where = address or "the doctor's own daemon"
        raise AttackFailed(f"{where} makes no sandbox: {error.code().name}: {error.details()}") from error
    return AttackReport(
        tuple(results),
        address or "a daemon of the doctor's own",
        time.monotonic() - started,
        cut_short=len(results) < len(attacks),
        problems=tuple(problems),
    )
