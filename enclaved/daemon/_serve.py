"""The composition root: builds every object, serves, and takes everything down again in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ms_enclave import __version__

from enclaved import log
from enclaved.config import Settings, parse_address
from enclaved.core.background import Background
from enclaved.core.boot import Boot, BootSettings
from enclaved.core.contexts import Contexts
from enclaved.core.crew import PoolParts
from enclaved.core.drift import Drift
from enclaved.core.engine import WatchedRuntime
from enclaved.core.executions import Executions
from enclaved.core.file_jobs import TOOL as FILES
from enclaved.core.files import Files
from enclaved.core.images import Images
from enclaved.core.leftovers import Leftovers
from enclaved.core.outside import Outside
from enclaved.core.ownership import Ownership
from enclaved.core.policy import Policy
from enclaved.core.pool import Pools
from enclaved.core.protections import Protections
from enclaved.core.quotas import Quotas
from enclaved.core.reaper import Reaper
from enclaved.core.recovery import Recovery
from enclaved.core.reset import TOOL as RESET
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import DATABASE_NAME, State, StateUnusable
from enclaved.core.system import System
from enclaved.core.tokens import Tokens
from enclaved.core.warming import TOOL as PRELOAD
from enclaved.daemon._endpoint import metrics_endpoint
from enclaved.daemon._errors import StartError
from enclaved.daemon._gates import Gates
from enclaved.daemon._lock import locked_state
from enclaved.daemon._policy import PolicySource
from enclaved.daemon._protecting import end_asked, first_verdict, look_with_docker
from enclaved.daemon._reload import Reloads
from enclaved.daemon._sockets import listen_unix
from enclaved.daemon._stop import StopRequest, drain
from enclaved.daemon._systemd import Notifier
from enclaved.gateway import connections_possible
from enclaved.metrics import Metrics
from enclaved.runtime.base import Runtime
from enclaved.runtime.docker.driver import DockerRuntime
from enclaved.runtime.inspection import Inspector
from enclaved.services import Calls, EdgeLimits, add_services, make_server
from enclaved.tools.registry import ToolRegistry, ToolSetupError
from enclaved.tools.shell_executor import CommandTool

_log = logging.getLogger(__name__)

EMBEDDED_GUEST_ABSENCE_S = 30.0
EMBEDDED_DRAIN_GRACE_S = 1.0
KEPT_DRAIN_GRACE_S = 2.0
"""How long calls get to finish at most where their executions outlive the daemon: then a short absence matters more."""
REMOVE_SANDBOXES_S = 15.0
STOP_SERVER_S = 1.0
CLOSE_BACKGROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a daemon listens; empty where it does not. TCP addresses have the port that was given."""

    unix: str
    tcp: str
    metrics: str
    http: str = ""


@dataclass(frozen=True, slots=True)
class _Core:
    """The objects behind the edge."""

    metrics: Metrics
    background: Background
    engine: WatchedRuntime
    policy: Policy
    policies: PolicySource
    state: State
    sandboxes: Sandboxes
    leftovers: Leftovers
    recovery: Recovery
    reaper: Reaper
    executions: Executions
    outside: Outside
    files: Files
    pools: Pools
    images: Images
    system: System
    protections: Protections
    gates: Gates

    def apply(self, settings: Settings) -> None:
        """Brings into force what needs no restart (`is_live`). Sandboxes that exist keep what they were granted.

        Raises `ConfigError` for a policy file with a mistake, and then has changed nothing.
        """
        self.policy.rules = self.policies.rules(settings)  # first, since it may raise
        self.executions.most = settings.limits.executions_per_sandbox_max
        log.set_level(settings.log.level)
        self.gates.reload()
        self.define_pools(settings)

    def define_pools(self, settings: Settings) -> None:
        """Makes the operator's pools what they are to be."""
        for problem in settings.bad_pools:
            _log.error("pool not defined", extra={"why": problem})
        self.metrics.pools.refused(len(settings.bad_pools))
        self.pools.define({pool.id: pool.plan() for pool in settings.pools})


async def serve(
    settings: Settings,
    *,
    stop: StopRequest,
    ready: Callable[[Addresses], None],
    embedded: bool = False,
    runtime: Runtime | None = None,
    tools: ToolRegistry | None = None,
    reloads: Reloads | None = None,
    working_dir: str = "",
) -> None:
    """Runs a daemon until ``stop`` asks for its end; ``ready`` is told where it listens, once it does.

    ``runtime`` and ``tools`` replace Docker and the installed tools, for tests. ``reloads`` asks for another reading of
    the configuration. ``working_dir`` is where the program works that embeds the daemon. Raises `StartError`. The
    engine need not be there: calls that need it answer
    `EngineUnavailable` until it is. Sandboxes of an earlier daemon on the same state directory are taken up. At the
    end the daemon's sandboxes are removed, unless the settings keep them for the next one; every step has a limit.
    """
    # A service manager that this process's parent has is not told about an embedded daemon.
    notifier = Notifier({}) if embedded else Notifier()
    async with AsyncExitStack() as stack:
        state_dir = await stack.enter_async_context(locked_state(Path(settings.state.dir)))
        core = await _compose(stack, settings, state_dir, embedded, runtime, tools, working_dir)
        listen = settings.listen
        most = connections_possible(listen.connections_max)
        calls = Calls(EdgeLimits(most, listen.calls_max, listen.client_calls_max))
        server = make_server(core.metrics, calls, core.gates.doors)
        health = add_services(
            server,
            sandboxes=core.sandboxes,
            executions=core.executions,
            contexts=Contexts(core.sandboxes),
            files=core.files,
            pools=core.pools,
            images=core.images,
            system=core.system,
        )
        await health.set_engine_available(False)  # until it has answered
        # The unix socket comes last: one that a server binds and never serves stays open until the process ends. It is
        # also how a parent sees that everything else is open.
        endpoint = await _open_endpoint(stack, settings, core, stop)
        http = await _open_http(stack, settings, core, calls)
        tcp = core.gates.listen_tcp(server)
        if listen.unix:
            listen_unix(server, Path(listen.unix), int(listen.unix_mode, 8), listen.unix_group)
        await server.start()
        stack.push_async_callback(server.stop, STOP_SERVER_S)
        base = state_dir.parent.parent if embedded else None
        clearing = core.background.spawn(core.leftovers.keep_clear(state_dir, base), "clear leftovers")
        core.background.spawn(_clean_up(core), "clean up")
        stack.push_async_callback(asyncio.wait, [clearing], timeout=REMOVE_SANDBOXES_S)
        stack.push_async_callback(_part, core, settings.daemon.keep_sandboxes_on_stop and not embedded)
        stack.callback(core.pools.close, keep_members=settings.daemon.keep_sandboxes_on_stop and not embedded)

        if not embedded:
            core.define_pools(settings)
        if not embedded or core.gates.needs_keys:
            core.background.spawn(core.gates.watch(), "watch tokens and the certificate")
        core.background.spawn(core.state.keep(), "keep state")
        core.protections.changed = health.set_engine_available
        core.background.spawn(core.engine.watch(core.protections.engine_seen), "watch engine")
        core.background.spawn(core.outside.follow(), "follow the engine")
        core.background.spawn(notifier.keep_alive(), "watchdog")

        def apply(changed: Settings) -> None:
            nonlocal settings
            core.apply(changed)
            settings = changed

        if reloads is not None:
            core.background.spawn(reloads.serve(settings, apply, notifier, core.metrics), "reload")
        if not embedded:
            await first_verdict(core.protections, stop.asked)
        addresses = Addresses(listen.unix, tcp, endpoint, http)
        _log.info("ready", extra={"version": __version__, **asdict(addresses)})
        notifier.tell("READY=1")
        ready(addresses)

        await end_asked(core.protections, stop.asked, embedded=embedded)
        notifier.tell("STOPPING=1")
        grace_s = settings.daemon.drain_grace_s
        if embedded:
            grace_s = min(grace_s, EMBEDDED_DRAIN_GRACE_S)
        elif settings.daemon.keep_sandboxes_on_stop:
            grace_s = min(grace_s, KEPT_DRAIN_GRACE_S)
        core.sandboxes.end_watches()
        await drain(calls, health, stop, grace_s)
    _log.info("stopped")


async def _compose(
    stack: AsyncExitStack,
    settings: Settings,
    state_dir: Path,
    embedded: bool,
    runtime: Runtime | None,
    tools: ToolRegistry | None,
    working_dir: str,
) -> _Core:
    """Builds the objects behind the edge; the stack closes those that need it."""
    try:
        tools = tools or ToolRegistry.from_entry_points()
    except ToolSetupError as error:
        raise StartError(str(error)) from error
    metrics = Metrics(version=__version__, tools=(*tools.names(), CommandTool.name, FILES, RESET, PRELOAD))
    tokens = Tokens(state_dir, metrics)
    stack.callback(tokens.close)
    driver = runtime or DockerRuntime(
        settings.engine.url, image_aliases=settings.images.aliases, waived=settings.waive.protections
    )
    engine = WatchedRuntime(driver, metrics)
    stack.push_async_callback(engine.close)
    background = Background()
    limits = settings.policy_limits()
    boot_settings = BootSettings(
        state_dir=state_dir,
        uid_first=settings.sandbox.uid_first,
        uid_count=settings.sandbox.uid_count,
        guest_absence_s=settings.sandbox.guest_absence_s or (EMBEDDED_GUEST_ABSENCE_S if embedded else 0.0),
        may_pull=settings.engine.pull,
        guest_runtime=settings.sandbox.guest_runtime,
        channel=settings.engine.channel,
        guard_image=settings.network.guard_image or settings.images.default,
        dns=tuple(settings.network.dns),
        runtime_classes=tuple(each.runtime_class() for each in settings.runtime_classes),
    )
    try:
        state = State.open(state_dir / DATABASE_NAME)
        stack.callback(state.close)
        state.tell(metrics.daemon.state_writable)
        stack.push_async_callback(background.close, CLOSE_BACKGROUND_S)
        ownership = Ownership.of(state_dir)
        boot = Boot(engine, boot_settings, ownership, background, metrics)
    except OSError as error:
        hint = "make room there, or choose another one with state.dir (--state-dir)"
        raise StartError(f"cannot write to the state directory {state_dir}: {error.strerror}; {hint}") from error
    except StateUnusable as error:
        raise StartError(str(error)) from error
    inspector: Inspector | None = None
    if runtime is None:
        protections, inspector = look_with_docker(stack, settings, embedded, boot, background, metrics)
    else:
        protections = Protections(background=background, metrics=metrics)
    boot.gate = protections
    policies = PolicySource(tools, working_dir)
    policy = Policy(limits, tools, rules=policies.rules(settings))
    gates = Gates(settings, tokens, metrics, policy, embedded=embedded)
    sandboxes = Sandboxes(
        boot=boot,
        policy=policy,
        tools=tools,
        background=background,
        metrics=metrics,
        table=state.sandboxes,
    )
    leftovers = Leftovers(runtime=engine, boot=boot, ownership=ownership, sandboxes=sandboxes, metrics=metrics)
    executions = Executions(
        sandboxes=sandboxes,
        tools=tools,
        runtime=engine,
        metrics=metrics,
        most=limits.executions_per_sandbox_max,
        quotas=Quotas(policy, lambda: sandboxes.records, metrics),
        store=state.executions,
    )
    sandboxes.commands.executions = executions
    stack.callback(executions.settle)
    recovery = Recovery(state=state, sandboxes=sandboxes, executions=executions, boot=boot, metrics=metrics)
    try:
        recovery.load()
    except StateUnusable as error:
        raise StartError(str(error)) from error
    reaper = Reaper(
        runtime=engine,
        boot=boot,
        ownership=ownership,
        sandboxes=sandboxes,
        executions=executions,
        state=state,
        metrics=metrics,
        state_dir=state_dir,
        every_s=settings.daemon.reap_every_s,
        drift=None
        if inspector is None
        else Drift(inspector=inspector, sandboxes=sandboxes, boot=boot, metrics=metrics),
    )
    outside = Outside(runtime=engine, sandboxes=sandboxes, boot=boot, background=background, metrics=metrics)
    pools = Pools(
        PoolParts(
            sandboxes=sandboxes,
            executions=executions,
            background=background,
            metrics=metrics,
            pools=state.pools,
            leases=state.leases,
        )
    )
    pools.take_up(recovery.pools)
    system = System(
        version=__version__,
        embedded=embedded,
        runtime=engine,
        sandboxes=sandboxes,
        executions=executions,
        channels=boot.channels,
        metrics=metrics,
        protections=protections,
        runtime_classes=boot.runtime_classes.names,
    )
    return _Core(
        metrics=metrics,
        background=background,
        engine=engine,
        policy=policy,
        policies=policies,
        state=state,
        sandboxes=sandboxes,
        leftovers=leftovers,
        recovery=recovery,
        reaper=reaper,
        executions=executions,
        outside=outside,
        files=Files(sandboxes=sandboxes, executions=executions, background=background, metrics=metrics),
        pools=pools,
        images=Images(runtime=engine, policy=policy, may_pull=settings.engine.pull),
        system=system,
        protections=protections,
        gates=gates,
    )


async def _clean_up(core: _Core) -> None:
    """Brings what earlier daemons left to its end, and from then on looks for what nobody owns."""
    await core.recovery.finish(core.leftovers)
    await core.reaper.run()


async def _open_endpoint(stack: AsyncExitStack, settings: Settings, core: _Core, stop: StopRequest) -> str:
    """Opens the endpoint for Prometheus, if there is to be one, and returns its address."""
    if not settings.listen.metrics:
        return ""
    endpoint = metrics_endpoint(
        parse_address(settings.listen.metrics),
        core.metrics,
        gates=core.gates,
        stopping=stop.asked.is_set,
        engine_available=lambda: core.engine.available,
        hosts=settings.http.hosts,
    )
    return str(await stack.enter_async_context(endpoint))


async def _open_http(stack: AsyncExitStack, settings: Settings, core: _Core, calls: Calls) -> str:
    """Opens the HTTP API, if there is to be one, and returns its address."""
    if not settings.listen.http:
        return ""
    from enclaved.daemon._http import http_endpoint  # the others start without it, in three quarters of the time
    from enclaved.gateway.routes import Core as HttpCore

    served = HttpCore(core.sandboxes, core.executions, core.files, core.system, core.pools)
    return await stack.enter_async_context(http_endpoint(settings, served, core.metrics, calls, core.gates))


async def _part(core: _Core, keep: bool) -> None:
    """Leaves the sandboxes to the next daemon if they are to be kept and it can know of them, else removes them."""
    if keep and core.state.is_in_place:
        core.sandboxes.leave()
        return
    if keep:
        _log.error("sandboxes are removed: the next daemon would not know of them, since the state was removed")
    await core.sandboxes.close(REMOVE_SANDBOXES_S)
