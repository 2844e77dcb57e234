"""ToolService: says what can be run."""

from __future__ import annotations

from ms_enclave.v1.tool_service_pb2 import ListToolsRequest, ListToolsResponse

from enclaved.core.sandboxes import Sandboxes
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context


class ToolService:
    """Serves ``ms_enclave.v1.ToolService``."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def list_tools(self, request: ListToolsRequest, context: Context) -> ListToolsResponse:
        """Lists the tools of one sandbox, or all."""
        found = self._sandboxes.tools(fields.sandbox_id(request.sandbox_id, required=False))
        return ListToolsResponse(tools=[convert.tool(tool) for tool in sorted(found, key=lambda tool: tool.name)])
