"""The configuration: every setting with its default, and where its value came from.

A value comes from the last of these that has one: the default, the TOML file, the environment, a flag. The setting
``limits.cpu_max`` is ``cpu_max`` in the section ``[limits]``, ``ENCLAVED_LIMITS_CPU_MAX`` and ``--limits-cpu-max``.
docs/configuration.md lists them all.
"""

from enclaved.config.checks import SOCKET_PATH_BYTES_MAX, Address, http_address, is_loopback, parse_address
from enclaved.config.errors import ConfigError
from enclaved.config.loading import DEFAULT_FILE, FILE_VARIABLE, Configuration, load
from enclaved.config.policy_file import DEFAULT_POLICY_FILE, read_policy
from enclaved.config.policy_request import read_request
from enclaved.config.policy_text import role_lines
from enclaved.config.settings import SETTINGS, Setting, Settings

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_POLICY_FILE",
    "FILE_VARIABLE",
    "SETTINGS",
    "SOCKET_PATH_BYTES_MAX",
    "Address",
    "ConfigError",
    "Configuration",
    "Setting",
    "Settings",
    "http_address",
    "is_loopback",
    "load",
    "parse_address",
    "read_policy",
    "read_request",
    "role_lines",
]
