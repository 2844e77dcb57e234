"""What every runtime and every tool promises, as test classes to subclass. Needs pytest and pytest-asyncio (auto mode).

class TestMyRuntime(RuntimeContract):
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[Runtime]:
        ...

class TestMyTool(ToolContract):
    make = MyTool
    calls = ({"text": "hello"},)
"""

from __future__ import annotations

from enclaved.testing.contracts.runtimes import RuntimeContract
from enclaved.testing.contracts.tools import ToolContract

__all__ = ["RuntimeContract", "ToolContract"]
