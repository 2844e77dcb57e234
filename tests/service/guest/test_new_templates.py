"""A template that starts anew, in a sandbox whose user has had time to prepare for that."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.service.guest.wire import wire_guest


async def test_no_file_of_the_user_runs_in_it() -> None:
    """It is root. A `.pth` file of the user's own packages would be run by its start, before anything of ours."""
    async with wire_guest() as guest:
        trap = (
            "import os, site\n"
            "os.chmod('.', 0o755)\n"
            "os.umask(0o022)\n"
            "folder = site.getusersitepackages()\n"
            "os.makedirs(folder)\n"
            'code = f\'import os; open("{os.getcwd()}/sprung", "w").write(str(os.getuid()))\'\n'
            "open(f'{folder}/trap.pth', 'w').write(code)\n"
            "open(f'{folder}/usercustomize.py', 'w').write(code)\n"
            "print(folder)\n"
        )
        setting = guest.python(trap)
        assert (await guest.end(setting))["exit_code"] == 0, setting.output(2)
        assert setting.output().startswith(bytes(guest.working_dir))
        (guest.working_dir / "sprung").write_text("not yet")
        (guest.working_dir / "sprung").chmod(0o666)
        template = int(Path(f"/proc/{guest.guest_pid()}/task/{guest.guest_pid()}/children").read_text().split()[0])
        os.kill(template, signal.SIGKILL)
        for _ in range(3):  # the first ones have children of the template that is gone
            run = guest.python("import sys; print([path for path in sys.path if 'local' in path])")
            assert (await guest.end(run))["exit_code"] == 0
        assert (guest.working_dir / "sprung").read_text() == "not yet"
        # Programs have the user's packages all the same.
        assert setting.output().strip() in run.output()
