"""The only room that talks to a Docker engine."""

from enclaved.runtime.docker.driver import DockerRuntime
from enclaved.runtime.docker.engine import Deadlines, detect_engine_url

__all__ = ["Deadlines", "DockerRuntime", "detect_engine_url"]
