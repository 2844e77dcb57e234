"""Which name servers sandboxes ask, and which addresses are this machine's."""

from __future__ import annotations

from pathlib import Path

from enclaved.core.surroundings import host_addresses, resolvers

TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 203.0.113.9
        /32 host LOCAL
     |-- 203.0.113.255
        /32 link BROADCAST
     |-- 10.1.0.0
        /24 link UNICAST
     |-- 10.1.0.7
        /32 host LOCAL
     |-- 10.1.0.7
        /32 host LOCAL
"""


def test_the_hosts_own_name_servers_are_asked_but_not_those_on_its_loopback(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# by hand\nnameserver 127.0.0.53\nnameserver ::1\noptions edns0\nnameserver\n")
    second.write_text("search here\nnameserver 10.0.0.2\nnameserver nonsense\nnameserver fd00::1\n" * 2)
    assert resolvers((), [tmp_path / "none", first, second]) == ("10.0.0.2",)
    assert resolvers((), [first]) == ()
    first.write_text("".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 9)))
    assert resolvers((), [first, second]) == ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def test_configured_name_servers_come_before_the_hosts(tmp_path: Path):
    place = tmp_path / "resolv.conf"
    place.write_text("nameserver 10.0.0.2\n")
    assert resolvers(("10.9.9.9", "10.9.9.8"), [place]) == ("10.9.9.9", "10.9.9.8")


def test_the_addresses_of_this_machine_are_those_that_the_kernel_delivers_here(tmp_path: Path):
    place = tmp_path / "fib_trie"
    place.write_text(TRIE)
    assert host_addresses(place) == ("10.1.0.7", "203.0.113.9")
    assert host_addresses(tmp_path / "none") == ()
    assert all(address.count(".") == 3 for address in host_addresses())
