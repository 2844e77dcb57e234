"""The packet filter in a network namespace of the test's own: what the kernel has is what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enclaved.runtime.docker import packet_filter
from enclaved.runtime.docker.packet_filter import DIFFERENT, NOT_UNDERSTOOD, batch, covers, messages, rules

WANTED = {
    "hidden": ["127.0.0.11/32"],
    "resolvers": ["10.9.9.9/32"],
    "closed": ["10.0.0.0/8", "203.0.113.7/32"],
    "gateway": "10.1.0.1/32",
    "ports": [["tcp", 8080]],
}
SOURCE = Path(packet_filter.__file__)
OPERATION_NOT_PERMITTED = 1
EXISTS = 17


def in_namespace(program: str, *through: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the filter's functions in a network namespace of its own, started by the command ``through``."""
    source = f"import sys\nsys.path.insert(0, {str(SOURCE.parent)!r})\nfrom packet_filter import *\nW = {WANTED!r}\n"
    command = ["unshare", "--user", "--map-root-user", "--net", *through, sys.executable, "-I", "-c", source + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_kernel_has_the_rules_that_it_was_given_and_they_can_be_read_back():
    done = in_namespace("import json; print(main([json.dumps(W)]), main([json.dumps(W)]))")
    assert done.stdout.split() == ["0", str(EXISTS)], done.stderr


@pytest.mark.parametrize(
    "change",
    [
        "W['closed'] = W['closed'][:-1]",
        "W['closed'] = ['10.0.0.0/9', '203.0.113.7/32']",
        "W['closed'] = W['closed'][::-1]",
        "W['resolvers'] = []",
        "W['ports'] = [['tcp', 8081]]",
        "W['ports'] = [['udp', 8080]]",
        "W['gateway'] = '10.1.0.2/32'",
        "HOOKS['out'] = 1",
        "del HOOKS['through']",
    ],
)
def test_rules_that_are_not_those_that_were_wanted_are_noticed(change):
    done = in_namespace(f"c = connect(); install(c, W); print(holds(c, W))\n{change}\nprint(holds(c, W))")
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_process_without_the_right_to_it_gets_no_filter():
    done = in_namespace("import json; print(main([json.dumps(W)]))", "setpriv", "--bounding-set", "-all")
    assert done.stdout.split() == [str(OPERATION_NOT_PERMITTED)], done.stderr


@pytest.mark.parametrize("argument", ["", "[]", "{}", '{"hidden": ["x"]}', json.dumps({**WANTED, "gateway": "a"})])
def test_arguments_that_make_no_sense_set_nothing(argument):
    done = in_namespace(f"print(main([{argument!r}]), main([]), holds(connect(), W))")
    assert done.stdout.split() == [str(NOT_UNDERSTOOD)] * 2 + ["False"], done.stderr


def test_closed_addresses_come_after_the_name_servers_and_before_the_rest():
    chains = [chain for chain, _ in rules(WANTED)]
    assert chains == ["out"] * 8 + ["in"] * 4
    drops = [
        at for at, (chain, rule) in enumerate(rules(WANTED)) if rule.endswith(packet_filter.verdict(packet_filter.DROP))
    ]
    assert drops == [0, 5, 6]


def test_all_messages_are_one_transaction():
    data, answers = batch(WANTED)
    kinds = [kind for kind, _ in messages(data)]
    assert (kinds[0], kinds[-1]) == (packet_filter.BATCH_BEGIN, packet_filter.BATCH_END)
    assert answers == len(kinds) - 2 == 1 + 3 + 12


def test_a_rule_with_one_step_more_or_another_value_is_not_the_same():
    one, two = packet_filter.ipv4(), packet_filter.ipv4() + packet_filter.verdict(1)
    assert covers(two, two)
    assert not covers(one, two)
    assert not covers(two, one)
    assert not covers(packet_filter.port(80), packet_filter.port(81))
    assert DIFFERENT != NOT_UNDERSTOOD


@pytest.mark.parametrize("data", [b"\x02\x00\x00\x00" + bytes(12), b"\xff\x00\x00\x00" + bytes(12)])
def test_half_a_message_is_an_error_and_not_an_answer(data):
    with pytest.raises(ValueError, match="half a message"):
        list(messages(data))
