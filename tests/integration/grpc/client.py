"""``buf curl`` as a client: it knows nothing of this project and learns everything by reflection."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from google.rpc import error_details_pb2

from tests.integration.failures.ground import PATIENCE_S


@dataclass(frozen=True)
class Answer:
    """What came of one call."""

    exit_code: int
    messages: list[dict[str, Any]]
    error: dict[str, Any]

    @property
    def message(self) -> dict[str, Any]:
        """The only message of a call that went well."""
        assert self.exit_code == 0, self.error
        (only,) = self.messages
        return only

    def detail(self, kind: type[Message]) -> Any:
        """One of the error's details, decoded."""
        (packed,) = [each for each in self.error["details"] if each["type"] == kind.DESCRIPTOR.full_name]
        return kind.FromString(base64.b64decode(packed["value"] + "=="))

    @property
    def reason(self) -> str:
        """The stable reason of the error."""
        return str(self.detail(error_details_pb2.ErrorInfo).reason)


@dataclass(frozen=True)
class Buf:
    """``buf curl`` at one daemon."""

    program: str
    socket: Path

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs the command to its end."""
        command = [self.program, "curl", "--protocol", "grpc", "--unix-socket", str(self.socket), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def call(self, method: str, *messages: dict[str, Any]) -> Answer:
        """Calls a method with messages."""
        sent = "\n".join(json.dumps(message) for message in messages or ({},))
        done = self.run(f"http://localhost/{method}", "-d", "@-", stdin=sent)
        error = json.loads(done.stderr) if done.stderr else {}
        return Answer(done.returncode, _documents(done.stdout), error)


def _documents(text: str) -> list[dict[str, Any]]:
    """Reads JSON objects that stand one after the other."""
    found = []
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:]
    return found
