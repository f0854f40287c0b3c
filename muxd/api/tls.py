"""TLS for the HTTP door, by files that may be renewed while it serves."""

import logging
import os
import ssl
from typing import Any

from muxd.clock import Clock
from muxd.errors import ConfigError

_log = logging.getLogger("muxd.api")
_LOOK = 1.0  # seconds between looks whether the files have changed


class Certificate:
    """``context`` is for the listener; each connection gets what the files hold then. Raises ConfigError
    where they cannot be used at the start; later what was read last goes on to hold."""

    def __init__(self, cert: str, key: str, clock: Clock):
        self._cert, self._key, self._clock = cert, key, clock
        self._stamp, self._looked = self._stamps(), clock.now()
        self._latest = self.context = self._load()
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, *_: Any) -> None:
        """With every handshake, whether or not the client names a server."""
        now = self._clock.now()
        if now - self._looked >= _LOOK:
            self._looked, stamp = now, self._stamps()
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
        if self._latest is not self.context:
            connection.context = self._latest

    def _renew(self) -> None:
        try:
            self._latest = self._load()
        except ConfigError as error:
            _log.error("%s; the certificate stays as it was", error.message)
        else:
            _log.info("%s: read again", self._cert)

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._cert, self._key, self._refuse_passphrase)
        except (OSError, ssl.SSLError) as error:
            where = f"server.tls_cert: {self._cert} with server.tls_key: {self._key}"
            raise ConfigError(f"{where}: {error.strerror or error}") from None
        return context

    def _refuse_passphrase(self) -> str:
        """OpenSSL would ask on the terminal, and a daemon has nobody there."""
        raise ConfigError(
            f"server.tls_key: {self._key} is encrypted, and muxd asks for no passphrase: store the key "
            "without one (openssl pkey -in KEY -out PLAIN), readable by muxd's user alone"
        )

    def _stamps(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in (self._cert, self._key):
            try:
                status = os.stat(path)
            except OSError:
                continue
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found
