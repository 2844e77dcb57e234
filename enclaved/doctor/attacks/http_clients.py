"""Clients of the HTTP API that do not keep to HTTP, to JSON or to keys. Every request has a key unless it says not."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import MIB, ActOf, Attack, Category, Evidence
from enclaved.doctor.attacks.judges import answers

_CREATE: Final = "/sandboxes"
_REFUSED: Final = tuple(str(code) for code in range(400, 500))


async def _keys(act: Act) -> Evidence:
    key = act.http_key
    await act.http("none", "GET", _CREATE, key="")
    await act.http("wrong", "GET", _CREATE, key="wrong")
    await act.http("a prefix", "GET", _CREATE, key=key[:-1])
    await act.http("with more", "GET", _CREATE, key=key + "x")
    await act.http("in the URL", "GET", f"{_CREATE}?api_key={key}", key="")
    await act.http("as a basic password", "GET", _CREATE, key="", headers={"Authorization": f"Basic {key}"})
    await act.http("in a cookie", "GET", _CREATE, key="", headers={"Cookie": f"api_key={key}"})
    return act.evidence()


async def _bodies(act: Act) -> Evidence:
    json_type = {"Content-Type": "application/json"}
    create = f"{_CREATE}?sandbox_type=docker"
    for name, body in {
        "no JSON": b"{",
        "a list": b"[1]",
        "the same key twice": b'{"image": "a", "image": "b"}',
        "an unknown key": b'{"HostConfig": {"Privileged": true}}',
        "privileged": b'{"privileged": true}',
        "deep": b"[" * 100_000,
        "NaN": b'{"timeout": NaN}',
        "not UTF-8": b'{"image": "\xff\xfe"}',
        "large": b'{"image": "' + b"x" * (2 * MIB) + b'"}',
        "a surrogate": b'{"image": "\\ud800"}',
        "mounts": b'{"volumes": {"/": {"bind": "/host", "mode": "rw"}}}',
    }.items():
        await act.http(name, "POST", create, body=body, headers=json_type)
    await act.http("another type", "POST", create, body=b"{}", headers={"Content-Type": "text/plain"})
    return act.evidence()


async def _lines(act: Act) -> Evidence:
    """Sends requests that are none, or two in one."""
    head = f"Host: localhost\r\nX-API-Key: {act.http_key}\r\n"
    for name, text in {
        "two lengths": f"POST {_CREATE} HTTP/1.1\r\n{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "length and chunks": f"POST {_CREATE} HTTP/1.1\r\n{head}Content-Length: 5\r\n"
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "a negative length": f"POST {_CREATE} HTTP/1.1\r\n{head}Content-Length: -1\r\n\r\n",
        "no request": "hello\r\n\r\n",
        "a folded header": f"GET {_CREATE} HTTP/1.1\r\n{head}X-A: b\r\n\tfolded: x\r\nHost: evil\r\n\r\n",
    }.items():
        await act.http_raw(name, text.encode())
    return act.evidence()


async def _paths(act: Act) -> Evidence:
    for name, path in {
        "up": "/sandboxes/../../etc/passwd",
        "encoded": "/sandboxes/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "nul": "/sandboxes/a%00b",
        "line break": "/sandboxes/a%0d%0aHost:%20x",
        "unknown": "/containers/json",
        "long": "/sandboxes/" + "a" * 20_000,
    }.items():
        await act.http(name, "GET", path)
    return act.evidence()


async def _pages(act: Act) -> Evidence:
    """Calls as a web page of another origin would."""
    await act.http("another origin", "GET", _CREATE, headers={"Origin": "https://evil.invalid"})
    await act.http("no origin", "POST", _CREATE, headers={"Origin": "null"}, body=b"{}")
    return act.evidence()


def _attack(name: str, sentence: str, act: ActOf, least: int) -> Attack:
    refused = answers(*_REFUSED, "closed", least=least)
    return Attack(f"http.{name}", Category.CLIENTS, sentence, refused, act=act, needs=frozenset({"http"}))


ATTACKS: Final = (
    _attack("keys", "Calls without a key, with a wrong one, and with one in the wrong place.", _keys, 7),
    _attack("bodies", "Sends bodies that are no JSON, too large, or ask for privilege.", _bodies, 12),
    _attack("requests", "Sends requests that are none, or two in one.", _lines, 5),
    _attack("paths", "Asks for paths that lead out of the interface.", _paths, 6),
    _attack("web-pages", "Calls as a web page of another origin would.", _pages, 2),
)
