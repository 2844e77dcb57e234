"""The operator's rules: what a caller may ask for, and what it then gets. Pure.

Nothing is silently weakened. What a caller set and may not have is refused, naming the rule; only a value that it left
at its documented default is lowered, and the sandbox says so (`Adjustment`).
"""

from __future__ import annotations

from enclaved.core.policy.admission import WORKING_DIR_DEFAULT, Admission, Policy
from enclaved.core.policy.docket import Outcome, Ruling
from enclaved.core.policy.executions import execution_timeout, output_limit
from enclaved.core.policy.images import entry_problem as image_problem
from enclaved.core.policy.images import granted_image
from enclaved.core.policy.limits import LIMIT_NAMES, PolicyLimits
from enclaved.core.policy.mounts import is_protected
from enclaved.core.policy.names import (
    LABEL_VALUE_MAX,
    LABELS_MAX,
    check_context_name,
    check_execution_id,
    check_id,
    check_labels,
    check_request_id,
)
from enclaved.core.policy.programs import COMMAND_BYTES_MAX, Tools
from enclaved.core.policy.programs import matches as tool_matches
from enclaved.core.policy.roles import (
    RULE_NAMES,
    PortRange,
    Role,
    Rules,
    ToolRule,
    VolumeRule,
    built_in_rules,
)
from enclaved.core.policy.users import user_problem

__all__ = [
    "COMMAND_BYTES_MAX",
    "LABELS_MAX",
    "LABEL_VALUE_MAX",
    "LIMIT_NAMES",
    "RULE_NAMES",
    "WORKING_DIR_DEFAULT",
    "Admission",
    "Outcome",
    "Policy",
    "PolicyLimits",
    "PortRange",
    "Role",
    "Rules",
    "Ruling",
    "ToolRule",
    "Tools",
    "VolumeRule",
    "built_in_rules",
    "check_context_name",
    "check_execution_id",
    "check_id",
    "check_labels",
    "check_request_id",
    "execution_timeout",
    "granted_image",
    "image_problem",
    "is_protected",
    "output_limit",
    "tool_matches",
    "user_problem",
]
