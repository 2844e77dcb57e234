"""``SandboxFactory`` and ``SandboxManagerFactory``: what can be made, by which name, and what cannot."""

from __future__ import annotations

from typing import Any

import pytest
from ms_enclave.errors import NotServed
from ms_enclave.sandbox.boxes import (
    DockerNotebookSandbox,
    DockerSandbox,
    Sandbox,
    SandboxFactory,
    VolcengineSandbox,
    register_sandbox,
)
from ms_enclave.sandbox.manager import (
    LocalSandboxManager,
    SandboxManager,
    SandboxManagerFactory,
    VolcengineSandboxManager,
)
from ms_enclave.sandbox.model import (
    CommandResult,
    DockerNotebookConfig,
    DockerSandboxConfig,
    ExecutionStatus,
    SandboxConfig,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
)


class TestSandboxFactory:
    @pytest.mark.parametrize("kind", [SandboxType.DOCKER, "docker"])
    @pytest.mark.parametrize("config", [None, {}, {"timeout": 7}, DockerSandboxConfig(timeout=7)])
    def test_it_takes_a_model_a_dictionary_or_nothing(self, kind: SandboxType | str, config: Any):
        sandbox = SandboxFactory.create_sandbox(kind, config)
        assert isinstance(sandbox, DockerSandbox)
        assert isinstance(sandbox.config, DockerSandboxConfig)
        assert sandbox.config.timeout == (7 if config else 30)

    def test_ids_are_made_up_or_chosen(self):
        first, second = (SandboxFactory.create_sandbox(SandboxType.DOCKER) for _ in range(2))
        assert first.id != second.id
        assert SandboxFactory.create_sandbox(SandboxType.DOCKER, sandbox_id="mine").id == "mine"

    def test_a_new_sandbox_has_the_documented_attributes(self):
        sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER)
        assert (sandbox.status, sandbox.sandbox_type) == (SandboxStatus.INITIALIZING, SandboxType.DOCKER)
        assert (sandbox.created_at, sandbox.metadata) == (sandbox.updated_at, {})

    def test_an_unknown_type_is_a_value_error_that_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="'nope' is none of 'docker', 'docker_notebook'"):
            SandboxFactory.create_sandbox("nope")

    def test_only_types_that_can_be_made_are_available(self):
        assert SandboxFactory.get_available_types() == [SandboxType.DOCKER]

    def test_documented_types_of_other_versions_say_so(self):
        with pytest.raises(NotServed, match="later version"):
            SandboxFactory.create_sandbox(SandboxType.DOCKER_NOTEBOOK, DockerNotebookConfig())
        with pytest.raises(NotImplementedError, match="later version"):
            DockerNotebookSandbox()
        for unserved in (VolcengineSandbox, VolcengineSandboxManager):
            with pytest.raises(NotImplementedError, match=r"Use SandboxType\.DOCKER"):
                unserved()

    async def test_a_kind_of_ones_own_can_be_registered(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(SandboxFactory, "_classes", dict(SandboxFactory._classes))

        @register_sandbox(SandboxType.DUMMY)
        class Echo(Sandbox):
            @property
            def sandbox_type(self) -> SandboxType:
                return SandboxType.DUMMY

            async def start(self) -> None:
                self.update_status(SandboxStatus.RUNNING)

            async def stop(self) -> None:
                self.update_status(SandboxStatus.STOPPED)

            async def cleanup(self) -> None:
                await self.stop()

            async def get_execution_context(self) -> None:
                return None

            async def execute_command(
                self, command: str | list[str], timeout: float | None = None, stream: bool = True
            ) -> CommandResult:
                return CommandResult(command=command, status=ExecutionStatus.SUCCESS, exit_code=0, stdout=str(command))

        assert SandboxType.DUMMY in SandboxFactory.get_available_types()
        async with LocalSandboxManager() as manager:
            sandbox_id = await manager.create_sandbox(SandboxType.DUMMY, SandboxConfig(timeout=3), "echo")
            sandbox = await manager.get_sandbox(sandbox_id)
            assert isinstance(sandbox, Echo)
            assert (await sandbox.execute_command("hello")).stdout == "hello"
            assert [(info.id, info.type) for info in await manager.list_sandboxes()] == [("echo", SandboxType.DUMMY)]
            assert (await manager.get_stats())["sandbox_types"] == {"dummy": 1}
        assert sandbox.status is SandboxStatus.STOPPED


class TestSandboxManagerFactory:
    @pytest.mark.parametrize("kind", [None, SandboxManagerType.LOCAL, "local"])
    def test_a_local_manager_is_the_default(self, kind: SandboxManagerType | str | None):
        assert isinstance(SandboxManagerFactory.create_manager(kind), LocalSandboxManager)
        assert set(SandboxManagerFactory.get_registered_types()) == {SandboxManagerType.LOCAL, SandboxManagerType.HTTP}

    def test_settings_may_be_a_model_a_dictionary_or_arguments(self):
        for made in (
            SandboxManagerFactory.create_manager(config=SandboxManagerConfig(timeout=5)),
            SandboxManagerFactory.create_manager(config={"timeout": 5}),
            SandboxManagerFactory.create_manager(timeout=5),
            SandboxManagerFactory.create_manager("local", {"timeout": 9}, timeout=5),
        ):
            assert made.config.timeout == 5

    @pytest.mark.parametrize(
        "settings",
        [
            {"manager_type": "nope"},
            {"manager_type": SandboxManagerType.VOLCENGINE},
        ],
        ids=["unknown", "volcengine"],
    )
    def test_a_type_that_is_not_registered_is_a_value_error(self, settings: dict[str, Any]):
        with pytest.raises(ValueError, match="not registered; registered are http, local"):
            SandboxManagerFactory.create_manager(**settings)

    def test_an_unknown_setting_is_a_value_error(self):
        with pytest.raises(ValueError, match="pool_sise"):
            SandboxManagerFactory.create_manager(pool_sise=3)

    def test_a_manager_of_ones_own_can_be_registered(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(SandboxManagerFactory, "_classes", dict(SandboxManagerFactory._classes))

        class Remote(LocalSandboxManager):
            pass

        SandboxManagerFactory.register(SandboxManagerType.HTTP, Remote)
        made = SandboxManagerFactory.create_manager(base_url="http://127.0.0.1:8000")
        assert isinstance(made, Remote)
        assert isinstance(made, SandboxManager)
        assert made._pool_initialized is False
