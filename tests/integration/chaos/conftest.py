"""What tests of daemons that die share."""

from tests.service.crash.conftest import _no_process_to_fork_from_is_left

__all__ = ["_no_process_to_fork_from_is_left"]
