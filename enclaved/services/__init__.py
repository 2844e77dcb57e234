"""The gRPC edge: one module per service, each method reads, calls one thing in ``core`` and writes.

`make_server` makes the server, `add_services` puts everything on it.
"""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc import aio
from grpc_reflection.v1alpha import reflection

from enclaved.core.contexts import Contexts
from enclaved.core.executions import Executions
from enclaved.core.files import Files
from enclaved.core.images import Images
from enclaved.core.pool import Pools
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.system import System
from enclaved.metrics import Metrics
from enclaved.services._auth import Doors, Server, add_tls_port
from enclaved.services._decoding import decoder
from enclaved.services._health import Health
from enclaved.services._interceptors import Calls, Handler, Wrapper
from enclaved.services._limits import MESSAGE_BYTES_MAX, EdgeLimits
from enclaved.services.context_service import ContextService
from enclaved.services.execution_service import ExecutionService
from enclaved.services.file_service import FileService
from enclaved.services.image_service import ImageService
from enclaved.services.pool_service import PoolService
from enclaved.services.sandbox_service import SandboxService
from enclaved.services.system_service import SystemService
from enclaved.services.tool_service import ToolService

__all__ = [
    "MESSAGE_BYTES_MAX",
    "Calls",
    "Doors",
    "EdgeLimits",
    "Health",
    "Server",
    "add_services",
    "add_tls_port",
    "make_server",
]


def make_server(metrics: Metrics, calls: Calls, doors: Doors) -> aio.Server:
    """Makes a server with the wrapper round every call and limits on everything that a client sends."""
    return aio.server(
        interceptors=(Wrapper(metrics, calls, doors),),
        options=calls.limits.options,
        maximum_concurrent_rpcs=calls.limits.backstop,
    )


def add_services(
    server: aio.Server,
    *,
    sandboxes: Sandboxes,
    executions: Executions,
    contexts: Contexts,
    files: Files,
    pools: Pools,
    images: Images,
    system: System,
) -> Health:
    """Puts every service on the server, with health and reflection; returns what sets the health."""
    ours: dict[str, object] = {
        "ms_enclave.v1.SandboxService": SandboxService(sandboxes),
        "ms_enclave.v1.ExecutionService": ExecutionService(executions),
        "ms_enclave.v1.ContextService": ContextService(contexts),
        "ms_enclave.v1.ToolService": ToolService(sandboxes),
        "ms_enclave.v1.FileService": FileService(files),
        "ms_enclave.v1.PoolService": PoolService(pools),
        "ms_enclave.v1.ImageService": ImageService(images),
        "ms_enclave.v1.SystemService": SystemService(system),
    }
    health = Health(ours)
    served = {**ours, "grpc.health.v1.Health": health}
    for name, service in served.items():
        _add(server, descriptor_pool.Default().FindServiceByName(name), service)
    reflection.enable_server_reflection((*served, reflection.SERVICE_NAME), server)
    return health


def _add(server: aio.Server, descriptor: ServiceDescriptor, service: object) -> None:
    """Serves every method of a service: ``CreateSandbox`` by ``create_sandbox``, and so on."""
    # The health library has grown a method (List, from 1.82) that we leave out: grpc answers UNIMPLEMENTED. A method of
    # our own contract that a service lacks is a fault, and stops the daemon here.
    methods = [method for method in descriptor.methods if not isinstance(service, Health) or method.name != "List"]
    handlers = {method.name: _handler(method, service) for method in methods}
    # Not as registered methods as well: for each of those grpc keeps a task and looks at all of them with every call.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


def _handler(method: MethodDescriptor, service: object) -> Handler:
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    response = message_factory.GetMessageClass(method.output_type)
    handler: Handler = make(
        getattr(service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()),
        request_deserializer=decoder(method),
        response_serializer=response.SerializeToString,
    )
    return handler
