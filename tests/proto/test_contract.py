"""The contract: stubs that match proto/, versions that match pyproject.toml, and no change that breaks a client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from ms_enclave.v1 import (
    context_service_pb2,
    error_reason_pb2,
    execution_service_pb2,
    file_service_pb2,
    image_service_pb2,
    pool_service_pb2,
    sandbox_service_pb2,
    system_service_pb2,
    tool_service_pb2,
)

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "sdk_python" / "ms_enclave" / "v1"
SNAPSHOT = ROOT / "proto" / "ms_enclave.v1.binpb"
MODULES = (
    context_service_pb2,
    error_reason_pb2,
    execution_service_pb2,
    file_service_pb2,
    image_service_pb2,
    pool_service_pb2,
    sandbox_service_pb2,
    system_service_pb2,
    tool_service_pb2,
)


def test_the_stubs_are_what_gen_protos_would_write() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "gen-protos", "--check"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_proto_file_is_checked_here() -> None:
    protos = {path.stem for path in (ROOT / "proto" / "ms_enclave" / "v1").glob("*.proto")}
    assert {module.__name__.rpartition(".")[2].removesuffix("_pb2") for module in MODULES} == protos


def test_the_floor_of_protobuf_is_the_version_that_the_stubs_ask_for() -> None:
    stamps = {
        stamp
        for path in STUBS.glob("*_pb2.py")
        for stamp in re.findall(r"# Protobuf Python Version: (\S+)", path.read_text())
    }
    assert stamps == {floor("protobuf")}


def test_the_floor_of_grpcio_is_the_version_that_the_stubs_ask_for() -> None:
    stamps = {
        stamp
        for path in STUBS.glob("*_pb2_grpc.py")
        for stamp in re.findall(r"GRPC_GENERATED_VERSION = '(\S+)'", path.read_text())
    }
    assert stamps == {f"{floor('grpcio')}.0"}


def test_what_the_snapshot_promises_is_still_there() -> None:
    """Names, numbers, types and kinds: what a client compiled against the snapshot, or JSON, relies on."""
    promised = set(promises(FileDescriptorSet.FromString(SNAPSHOT.read_bytes()).file))
    kept = set(promises(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in MODULES))
    assert promised
    assert sorted(promised - kept) == []


def test_every_error_reason_is_documented() -> None:
    documented = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "errors.md").read_text()))
    names = error_reason_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
    reasons = {name.removeprefix("ERROR_REASON_") for name in names}
    assert sorted(reasons - documented) == ["UNSPECIFIED"]


def floor(name: str) -> str:
    """Returns the lowest version of a library that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = [
        match[1] for text in project["dependencies"] if (match := re.match(rf"{re.escape(name)}>=([0-9.]+)", text))
    ]
    return version


def promises(files: Iterator[FileDescriptorProto] | list[FileDescriptorProto]) -> Iterator[str]:
    """Yields one line for each thing of our package that nobody may change."""
    for file in files:
        if file.package != "ms_enclave.v1":
            continue
        for message in file.message_type:
            yield from message_promises(message, "")
        for enum in file.enum_type:
            yield from enum_promises(enum, "")
        for service in file.service:
            for method in service.method:
                kind = f"{method.client_streaming:d}{method.server_streaming:d}"
                yield f"rpc {service.name}.{method.name}({method.input_type}) {method.output_type} {kind}"


def message_promises(message: DescriptorProto, outer: str) -> Iterator[str]:
    name = f"{outer}{message.name}"
    for field in message.field:
        yield f"field {name}.{field.name} = {field.number}: {field.type} {field.type_name} {field.label}"
        if field.HasField("oneof_index"):
            yield f"field {name}.{field.name} in {message.oneof_decl[field.oneof_index].name}"
    for inner in message.nested_type:
        yield from message_promises(inner, f"{name}.")
    for enum in message.enum_type:
        yield from enum_promises(enum, f"{name}.")


def enum_promises(enum: EnumDescriptorProto, outer: str) -> Iterator[str]:
    for value in enum.value:
        yield f"enum {outer}{enum.name}.{value.name} = {value.number}"
