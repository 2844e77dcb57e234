"""Every setting with its default and its meaning."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from enclaved.config.pools import PoolSettings
from enclaved.config.runtime_classes import RuntimeClassSettings
from enclaved.core.policy import PolicyLimits

PREFIX: Final = "ENCLAVED_"

_DEFAULTS = PolicyLimits()
_Bytes = Annotated[int, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]
_Cores = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Listen(_Section):
    """Where the daemon listens."""

    unix: str = Field("/run/enclaved/enclaved.sock", description="Path of the unix socket; empty: none.")
    unix_mode: str = Field("0660", pattern="^0?[0-7]{3}$", description="Permission bits of the unix socket, in octal.")
    unix_group: str = Field(
        "ms-enclave", description="Group of the unix socket, if it exists; empty: the daemon's own."
    )
    tcp: str = Field(
        "",
        description="Address for gRPC over TCP, such as 127.0.0.1:50061. Beyond loopback it needs a certificate "
        "(tls.cert) and every call a token. Empty: none.",
    )
    tcp_auth: Literal["auto", "required"] = Field(
        "auto", description="Whether every call over listen.tcp needs a token; auto: beyond loopback."
    )
    http: str = Field(
        "",
        description="Address for the HTTP API, such as 127.0.0.1:8000 or unix:/run/enclaved/http.sock. Beyond loopback "
        "it needs a certificate (tls.cert) and every request a token or a key. Empty: none.",
    )
    http_auth: Literal["auto", "required"] = Field(
        "auto",
        description="Whether every HTTP request needs a token or one of http.api_keys; auto: beyond loopback, and "
        "where there are keys.",
    )
    connections_max: _Count = Field(
        1000, description="Connections at once to each listener; fewer where the daemon may open few files."
    )
    calls_max: int = Field(
        512, ge=16, description="gRPC calls at once; an eighth is kept for those that are over soon."
    )
    client_calls_max: _Count = Field(
        384, description="gRPC calls at once of one token, or of one TCP connection without a token."
    )
    metrics: str = Field(
        "127.0.0.1:9464",
        description="Address for Prometheus. Beyond loopback it needs a certificate (tls.cert), and whoever asks a "
        "token of a role such as monitor. Empty: none.",
    )


class Http(_Section):
    """The HTTP API."""

    api_keys: list[str] = Field(
        [],
        json_schema_extra={"secret": True},
        description="Keys for HTTP beside the tokens; sha256:DIGEST names a key by its digest. With one, every request "
        "needs a key or a token.",
    )
    role: str = Field("default", min_length=1, description="Role of who calls with one of http.api_keys.")
    api_key_in_url: bool = Field(False, description="Whether ?api_key=KEY counts, too. URLs end up in logs.")
    hosts: list[str] = Field(
        [],
        description="Names under which clients reach the HTTP API and listen.metrics, beside localhost and addresses.",
    )
    requests_max: _Count = Field(100, description="HTTP requests at once.")
    archive_max_bytes: _Bytes = Field(67108864, description="Largest archive that can be uploaded over HTTP, packed.")


class Tls(_Section):
    """TLS of listeners on TCP."""

    cert: str = Field(
        "",
        description="File with the certificate and its chain (PEM). With it listen.tcp and listen.http speak TLS, and "
        "listen.metrics beyond loopback. A changed file counts within seconds.",
    )
    key: str = Field("", description="File with the private key of tls.cert (PEM).")
    behind_proxy: bool = Field(
        False,
        description="States that a proxy before the listeners ends TLS: then they may be anywhere without tls.cert, "
        "and tokens travel from that proxy to the daemon as they are.",
    )


class State(_Section):
    """What the daemon keeps."""

    dir: str = Field("/var/lib/enclaved", description="Directory for the daemon's state. One daemon at a time uses it.")


class Engine(_Section):
    """The container engine."""

    url: str = Field(
        "unix:///var/run/docker.sock", description="Address of the engine. DOCKER_HOST counts below the other sources."
    )
    pull: bool = Field(True, description="Whether images that the engine lacks are pulled.")
    channel: Literal["auto", "socket", "attach"] = Field(
        "auto",
        description="How sandboxes are reached: over a mounted socket, by attaching to them (for engines that do not "
        "see the daemon's files), or whichever works for the first one.",
    )


class Images(_Section):
    """Which images sandboxes run."""

    default: str = Field(
        _DEFAULTS.image_default, min_length=1, description="Image of a sandbox whose caller names none."
    )
    aliases: dict[str, str] = Field(
        {"python:3.11-slim": "ms-enclave/python:3.11"},
        description="Other names for images, used where the engine lacks the image of the name itself.",
    )


class Limits(_Section):
    """What a caller may ask for, and gets without asking."""

    memory_default_bytes: _Bytes = Field(_DEFAULTS.memory_default_bytes, description="Memory of a sandbox.")
    memory_max_bytes: _Bytes = Field(_DEFAULTS.memory_max_bytes, description="Most memory of a sandbox.")
    cpu_default: _Cores = Field(_DEFAULTS.cpu_default, description="CPU time per wall time of a sandbox, in cores.")
    cpu_max: _Cores = Field(_DEFAULTS.cpu_max, description="Most CPU time per wall time of a sandbox, in cores.")
    pids_default: _Count = Field(_DEFAULTS.pids_default, description="Processes and threads of a sandbox.")
    pids_max: _Count = Field(_DEFAULTS.pids_max, description="Most processes and threads of a sandbox.")
    timeout_default_s: _Seconds = Field(_DEFAULTS.timeout_default_s, description="Timeout of an execution.")
    timeout_max_s: _Seconds = Field(_DEFAULTS.timeout_max_s, description="Longest timeout of an execution.")
    ttl_default_s: _Seconds = Field(_DEFAULTS.ttl_default_s, description="Time to live of a sandbox.")
    ttl_max_s: _Seconds = Field(_DEFAULTS.ttl_max_s, description="Longest time to live of a sandbox.")
    idle_timeout_default_s: _SecondsOrZero = Field(
        _DEFAULTS.idle_timeout_default_s,
        description="Time without use after which a sandbox is removed; 0: none, or idle_timeout_max_s if that is set.",
    )
    idle_timeout_max_s: _SecondsOrZero = Field(
        _DEFAULTS.idle_timeout_max_s, description="Longest idle timeout of a sandbox; 0: any, and none at all."
    )
    sandboxes_max: _Count = Field(_DEFAULTS.sandboxes_max, description="Sandboxes at once.")
    executions_per_sandbox_max: _Count = Field(
        _DEFAULTS.executions_per_sandbox_max, description="Executions at once in one sandbox."
    )


class Policy(_Section):
    """Who may ask for what."""

    file: str = Field(
        "", description="File of roles; empty: /etc/enclaved/policy.toml if there is one, else the compiled roles."
    )


class Sandbox(_Section):
    """How sandboxes are made."""

    uid_first: int = Field(1_900_000_000, ge=1000, le=4_000_000_000, description="First user id for user code.")
    uid_count: int = Field(65_536, ge=1, le=1_000_000, description="How many user ids there are; each sandbox has one.")
    guest_runtime: str = Field(
        "",
        description="Folder of the interpreter for images without Python, made by scripts/build-guest-runtime; empty: "
        "/usr/local/lib/ms-enclave/guest-runtime, else the cache of the daemon's user.",
    )
    guest_absence_s: _SecondsOrZero = Field(
        0.0, description="Time without a daemon after which a sandbox ends itself; 0: never (embedded daemons: 30)."
    )
    kill_at_pids_limit: bool = Field(
        _DEFAULTS.kill_at_pids_limit,
        description="Whether an execution that meets the limit of processes is killed (verdict PIDS_LIMIT). "
        "Otherwise its fork fails, and the program goes on.",
    )


class Ceiling(_Section):
    """The limits of all sandboxes together, which `enclaved prepare` gives to their control group."""

    memory_bytes: int = Field(0, ge=0, description="Memory of all sandboxes together; 0: three quarters of the host's.")
    pids: _Count = Field(65_536, description="Processes and threads of all sandboxes together.")
    required: bool = Field(
        False, description="Whether the daemon serves only where the sandboxes' control group has limits."
    )


class Waive(_Section):
    """What the operator does without."""

    protections: list[str] = Field(
        [],
        description="Protections without which the daemon serves all the same, by the names in docs/security.md. A "
        "daemon that a program starts for itself reads this from /etc/enclaved/config.toml only.",
    )


def _resolver(text: str) -> str:
    """Refuses what is no address of a name server that a sandbox could ask."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        address = ipaddress.IPv4Address(0)
    if address.is_loopback or address.is_unspecified:
        words = "must be an address of IPv4, and not of the loopback: a sandbox has one of its own"
        raise PydanticCustomError("resolver", words)
    return str(address)


class NetworkOptions(_Section):
    """Networks of sandboxes, where a role grants them."""

    dns: list[Annotated[str, AfterValidator(_resolver)]] = Field(
        [],
        description="Addresses (IPv4) of the name servers that sandboxes with a network may ask; at most three count. "
        "Empty: those of the host that are not its own loopback.",
    )
    guard_image: str = Field(
        "",
        description="Image with Python, which you trust, in which the packet filters of sandboxes are set; empty: "
        "images.default.",
    )


class Daemon(_Section):
    """The daemon itself."""

    drain_grace_s: _SecondsOrZero = Field(
        10.0,
        description="Time that calls get to finish when the daemon stops; at most 2 where sandboxes are kept, as "
        "executions go on.",
    )
    keep_sandboxes_on_stop: bool = Field(
        False, description="Whether sandboxes run on when the daemon stops, for the next one on its state directory."
    )
    reap_every_s: _Seconds = Field(
        60.0, description="Time between two looks for what nobody owns: containers, directories, rows."
    )


class Log(_Section):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    format: Literal["json", "text"] = Field("json", description="One JSON object per line, or text for a person.")


class Settings(_Section):
    """All settings."""

    listen: Listen = Listen()
    http: Http = Http()
    tls: Tls = Tls()
    state: State = State()
    engine: Engine = Engine()
    images: Images = Images()
    limits: Limits = Limits()
    policy: Policy = Policy()
    sandbox: Sandbox = Sandbox()
    ceiling: Ceiling = Ceiling()
    waive: Waive = Waive()
    network: NetworkOptions = NetworkOptions()
    daemon: Daemon = Daemon()
    log: Log = Log()
    pools: tuple[PoolSettings, ...] = ()
    """Pools that the operator defines."""
    bad_pools: tuple[str, ...] = ()
    """What is wrong with definitions of pools; those are left out, and everything else is served."""
    runtime_classes: tuple[RuntimeClassSettings, ...] = ()
    """What sandboxes can be isolated by beside the engine's own runtime."""

    def policy_limits(self) -> PolicyLimits:
        """Returns the numbers of the policy. Raises `ValueError` where they contradict each other."""
        return PolicyLimits(
            **self.limits.model_dump(),
            image_default=self.images.default,
            kill_at_pids_limit=self.sandbox.kill_at_pids_limit,
        )

    def value(self, key: str) -> Any:
        """Returns the value of a key such as ``limits.cpu_max``."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)


class Setting(NamedTuple):
    """One setting, under all its names."""

    key: str
    field: FieldInfo

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.key.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def is_secret(self) -> bool:
        """Whether its value is not to be shown."""
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get("secret"))

    @property
    def description(self) -> str:
        """What it is, in a sentence."""
        return self.field.description or ""


def _all_settings() -> Iterator[Setting]:
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            for name, inner in model.model_fields.items():
                yield Setting(f"{section}.{name}", inner)


SETTINGS: Final = tuple(_all_settings())
