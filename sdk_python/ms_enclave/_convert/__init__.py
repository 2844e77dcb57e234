"""The one mapping between the SDK's models and the contract's messages.

A round-trip test fills every message and fails when a field is not mapped.
"""

from ms_enclave._convert.events import CHANNELS, event, finished, notice
from ms_enclave._convert.executions import context_info, execution_info, offsets, terminal_size, tool_call
from ms_enclave._convert.sandboxes import effective_config, memory_text, sandbox_info, spec
from ms_enclave._convert.system import health, tool_info
from ms_enclave._convert.texts import PARAMETERS_LIMIT_BYTES, is_offset, plain_number, text, to_json

__all__ = [
    "CHANNELS",
    "PARAMETERS_LIMIT_BYTES",
    "context_info",
    "effective_config",
    "event",
    "execution_info",
    "finished",
    "health",
    "is_offset",
    "memory_text",
    "notice",
    "offsets",
    "plain_number",
    "sandbox_info",
    "spec",
    "terminal_size",
    "text",
    "to_json",
    "tool_call",
    "tool_info",
]
