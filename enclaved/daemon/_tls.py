"""The certificate of the listeners: read at the start, and again whenever its files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from enclaved.config.reading import read_file
from enclaved.daemon._errors import StartError
from enclaved.metrics import Metrics

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
FILE_BYTES_MAX: Final = 1024 * 1024
SOON_S: Final = 14 * 86400.0
_READS_MAX: Final = 3
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_ALTERNATIVE_NAMES: Final = b"\x06\x03\x55\x1d\x11"
"""The identifier of the extension."""


class Pair(NamedTuple):
    """A certificate with its chain, and its private key, in PEM."""

    key: bytes
    cert: bytes
    context: ssl.SSLContext
    not_after_s: float
    """When it expires, in seconds since the epoch."""


class Unusable(Exception):
    """A pair of files cannot be used; the text says why."""


class Certificates:
    """The pair in use. A new one that cannot be used changes nothing. May be read from any thread."""

    def __init__(self, cert: Path, key: Path, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """Raises `StartError` if there is no pair that can be used."""
        self._cert, self._key = cert, key
        self._metrics = metrics
        self._clock = clock
        self._looked = self._signs()
        try:
            self.pair = read_pair(cert, key)
        except Unusable as error:
            raise StartError(f"cannot use the certificate: {error}; look at tls.cert and tls.key") from error
        self._tell()
        self.context = _context()
        """For servers of asyncio. Each handshake uses the pair of its time."""
        self.context.sni_callback = self._switch

    async def watch(self) -> None:
        """Looks for changed files from time to time. Never returns."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._signs() != self._looked:
                self.reload()

    def reload(self) -> bool:
        """Reads the files again and says whether the pair in them is now in use."""
        self._looked = self._signs()
        try:
            pair = read_pair(self._cert, self._key)
            if pair.not_after_s <= self._clock():
                raise Unusable(f"{self._cert} has expired at {_date(pair.not_after_s)}")
        except Unusable as error:
            self._metrics.access.certificate_reloaded(False)
            _log.error("certificate not reloaded; the one before stays in use", extra={"why": str(error)})
            return False
        if (pair.key, pair.cert) != (self.pair.key, self.pair.cert):
            self.pair = pair
            self._metrics.access.certificate_reloaded(True)
            self._tell()
        return True

    def _tell(self) -> None:
        end_s = self.pair.not_after_s
        self._metrics.access.certificate_loaded(end_s)
        is_urgent = end_s - self._clock() < SOON_S
        _log.log(logging.WARNING if is_urgent else logging.INFO, "certificate in use", extra={"until": _date(end_s)})

    def _switch(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self.pair.context

    def _signs(self) -> list[tuple[int, int, int] | None]:
        """What tells that a file is another one, or has other content."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self._cert, self._key):
            try:
                about = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((about.st_ino, about.st_mtime_ns, about.st_size))
        return found


def read_pair(cert: Path, key: Path) -> Pair:
    """Reads two files that are not changed meanwhile. Raises `Unusable`."""
    for _ in range(_READS_MAX):
        context = _context()
        before = _bytes(key), _bytes(cert)
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except (ssl.SSLError, OSError, _NeedsPassword) as error:
            why = "the key needs a password" if isinstance(error, _NeedsPassword) else _reason(error)
            raise Unusable(f"{cert} and {key} are no certificate with its key in PEM ({why})") from error
        if before == (_bytes(key), _bytes(cert)):
            return Pair(*before, context, _not_after_s(before[1], cert))
    raise Unusable(f"{cert} and {key} change while they are read")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class _NeedsPassword(Exception):
    """Nobody is there to type one."""


def _no_password() -> str:
    raise _NeedsPassword


def _bytes(path: Path) -> bytes:
    try:
        found = read_file(path, FILE_BYTES_MAX)
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    if len(found) > FILE_BYTES_MAX:
        raise Unusable(f"{path} has more than {FILE_BYTES_MAX} bytes")
    return found


def _reason(error: ssl.SSLError | OSError | _NeedsPassword) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


def _not_after_s(pem: bytes, path: Path) -> float:
    """Finds out when the first certificate of a file expires, and that it has names.

    The library says so of a peer's certificate only.
    """
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    try:
        first = pem[pem.index(begin) : pem.index(end) + len(end)]
        whole = ssl.PEM_cert_to_DER_cert(first.decode("ascii"))
        fields = _parts(_parts(_one(whole))[0][1])
        validity = fields[4 if fields[0][0] == _VERSION else 3]
        kind, text = _parts(validity[1])[1]
        form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
        end_s = datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError) as error:
        raise Unusable(f"{path} has a certificate that makes no sense") from error
    if _ALTERNATIVE_NAMES not in whole:  # some clients then believe the subject, whatever that was meant to be
        raise Unusable(f"{path} has no name of the daemon (subjectAltName); have it signed with one")
    return end_s


def _one(der: bytes) -> bytes:
    kind, content = _parts(der)[0]
    if kind != _SEQUENCE:
        raise ValueError("not a certificate")
    return content


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """Splits what is in a DER value: tags of one byte, and lengths of up to four."""
    found = []
    at = 0
    while at < len(der):
        kind, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("a length that makes no sense")
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise ValueError("a value that is cut short")
        found.append((kind, der[at : at + length]))
        at += length
    return found


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
