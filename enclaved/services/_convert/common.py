"""What several parts of the mapping need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp


def json_text(value: Mapping[str, Any]) -> str:
    """Shows a mapping as JSON."""
    return json.dumps(dict(value), ensure_ascii=False)


def timestamp(moment: datetime) -> Timestamp:
    """Shows a moment."""
    found = Timestamp()
    found.FromDatetime(moment)
    return found
