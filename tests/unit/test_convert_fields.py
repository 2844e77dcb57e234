"""Checks of single fields: what strangers may write in JSON, numbers and chunks."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.errors import InvalidRequest
from enclaved.services import _fields as fields


def refusal(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        fields.json_object(text, "spec.parameters_json")
    (violation,) = caught.value.violations
    assert violation.field == "spec.parameters_json"
    return violation.description


def test_an_object_is_read_with_integers_as_integers():
    assert fields.json_object('{"n": 9007199254740993, "t": "ü", "x": [1.5, null]}', "f") == {
        "n": 9007199254740993,
        "t": "ü",
        "x": [1.5, None],
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("{'code': 1}", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('"{}"', "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"x": {"b": 1, "b": 1}}', "the key 'b' twice"),
        ('{"t": NaN}', "has NaN"),
        ('{"t": Infinity}', "has Infinity"),
        ('{"t": -Infinity}', "has -Infinity"),
        ('{"t": 1e999}', "too large"),
        ('{"t": -1e999}', "too large"),
        ('{"t": ' + "9" * 5000 + "}", "more than 1000 digits"),
        ('{"t": "\\ud800"}', "half a surrogate"),
        ('{"\\udfff": 1}', "half a surrogate"),
        ('{"t":' + "[" * 9_000 + "]" * 9_000 + "}", "nested too deeply"),
        ('{"t":' + "[" * 200_000 + "]" * 200_000 + "}", "more than 20000 strings, commas and brackets"),
        ('{"code": "' + "x" * (1024 * 1024) + '"}', "put larger content into a file"),
        ('{"code": "' + "ü" * (600 * 1024) + '"}', "more than 1048576"),
    ],
)
def test_what_is_not_a_strict_object_is_refused_with_the_reason(text, why):
    assert why in refusal(text)


def test_a_whole_surrogate_pair_is_one_character():
    assert fields.json_object('{"t": "\\ud83d\\ude00"}', "f") == {"t": "😀"}


def test_a_refusal_never_repeats_what_was_sent():
    assert "hunter2" not in refusal('{"code": "token=hunter2"')


def test_many_keys_are_read_in_linear_time():
    keys = ",".join(f'"{n}":0' for n in range(6_000))
    assert "twice" in refusal("{" + keys + ',"5999":0}')
    keys = ",".join(f'"{n}":0' for n in range(80_000))
    assert "more than 20000" in refusal("{" + keys + ',"79999":0}')


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_whatever_json_can_say_comes_back(value):
    assert fields.json_object(json.dumps(value), "f") == value


@given(st.text())
def test_any_text_is_an_object_or_refused(text):
    with contextlib.suppress(InvalidRequest):
        assert isinstance(fields.json_object(text, "f"), dict)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), float("-inf")])
def test_an_amount_is_finite_and_not_negative(value):
    with pytest.raises(InvalidRequest, match="finite number"):
        fields.amount(value, "timeout_s")


def test_a_chunk_has_a_most():
    assert fields.chunk(b"x" * 1024 * 1024, "data")
    with pytest.raises(InvalidRequest, match="in one message"):
        fields.chunk(b"x" * (1024 * 1024 + 1), "data")


def test_an_id_may_be_left_out_only_where_it_is_optional():
    assert fields.sandbox_id("", required=False) == ""
    assert fields.execution_id("", required=False) == ""
    with pytest.raises(InvalidRequest, match="is missing"):
        fields.sandbox_id("")
    with pytest.raises(InvalidRequest, match="is missing"):
        fields.execution_id("")


@pytest.mark.parametrize("value", ["..", "a/b", "a\r\nb", "a\0", "A", "ü", "\u0661", "x" * 1_000_000, "box\n"])
def test_an_id_of_a_sandbox_is_plain(value):
    with pytest.raises(InvalidRequest):
        fields.sandbox_id(value)
