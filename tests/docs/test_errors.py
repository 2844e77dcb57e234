"""docs/errors.md lists every reason with its code and details, and every verdict."""

import re
from pathlib import Path

from google.rpc import code_pb2
from ms_enclave.v1 import error_reason_pb2

from enclaved import status
from enclaved.model import Verdict
from tests.unit.test_status import EXAMPLES, details

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if row.startswith("| `")]
REASONS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 5}
VERDICTS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 2}


def name(reason: error_reason_pb2.ErrorReason.ValueType) -> str:
    return error_reason_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def test_every_reason_is_documented_with_its_code():
    rows = (*status.TABLE.values(), status.INTERNAL)
    documented = {reason: row[0].strip("`") for reason, row in REASONS.items()}
    assert documented == {name(row.reason): code_pb2.Code.Name(row.code) for row in rows}


def test_every_reason_is_documented_with_its_details():
    for error in EXAMPLES:
        found = status.to_status(error)
        documented = set(re.findall(r"`(\w+)`", REASONS[name(status.row_of(error).reason)][1]))
        assert documented == set(details(found)) - {"ErrorInfo"}


def test_every_reason_says_when_it_comes_and_what_to_do():
    assert all(len(when) > 10 and len(todo) > 10 for _, _, when, todo in REASONS.values())


def test_every_verdict_is_documented():
    assert set(VERDICTS) == {verdict.value for verdict in Verdict}
