"""The server's certificates, read again when their files change.

A handshake gets those that are in force at its moment; connections that are open keep theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from pathlib import Path
from typing import NoReturn, cast

import grpc
import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.background import Loop
from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.units import printable

LOOK_S = 2.0
"""How often the files are looked at."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.server")

Stamp = tuple[tuple[int, int, int, int] | None, ...]
"""What changes with the files, links followed: secrets of Kubernetes are links that move."""


class Certificates:
    """A chain, its key, and the authorities of clients. `start` and `stop` are idempotent.

    Args:
        chain: PEM file.
        key: PEM file.
        authorities: PEM file; empty: clients need no certificate.
    """

    def __init__(self, chain: str, key: str, authorities: str) -> None:
        self._files = {"tls_cert": chain, "tls_key": key, "tls_client_ca": authorities}
        self._stamp: Stamp = ()
        """Of what is in force, or was refused with a word."""
        self._suspect: Stamp = ()
        """Of what could not be used at the last look."""
        self._in_force: tuple[bytes, ...] = ()
        self._news: grpc.ServerCertificateConfiguration | None = None
        """For the next handshake."""
        self._looking = asyncio.Lock()
        self._loop = Loop("certificates", self._watch, error_pause_s=LOOK_S)

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files; what gRPC is to serve with, from now on.

        Raises:
            ConfigurationError: A file can't be read or used.
        """
        self._stamp = self._stamps()
        self._in_force = self._read()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._in_force),
            self._fetch,
            require_client_authentication=bool(self._in_force[2]),
        )

    def start(self) -> None:
        """Begin to look at the files."""
        self._loop.start()

    async def stop(self) -> None:
        """No longer look at them; fine before start."""
        await self._loop.stop()

    async def look(self, *, patient: bool = False) -> None:
        """Read the files again if they have changed; what can't be used is told and left alone.

        Args:
            patient: What can't be used may be half written: it is told at the second look.
        """
        async with self._looking:
            stamp = await asyncio.to_thread(self._stamps)
            if stamp == self._stamp:
                return
            try:
                found = await asyncio.to_thread(self._read)
            except ConfigurationError as error:
                if stamp == self._suspect or not patient:
                    self._stamp = stamp
                    log.error(
                        "new certificates can't be used, the former are served on",
                        error=error.message,
                    )
                self._suspect = stamp
                return
            self._stamp = stamp
            if found != self._in_force:
                self._in_force = found
                self._news = _configuration(found)
                log.info("certificates read again", sha256=_fingerprint(found[0]))

    async def _watch(self) -> float:
        await self.look(patient=True)
        return LOOK_S

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        """For gRPC, in its threads, before each handshake."""
        news, self._news = self._news, None
        # None stands for those that gRPC has, which the annotations do not know.
        return cast(grpc.ServerCertificateConfiguration, news)

    def _stamps(self) -> Stamp:
        return tuple(_stamp(path) for path in self._files.values())

    def _read(self) -> tuple[bytes, bytes, bytes]:
        chain, key, authorities = (
            _bytes(name, path) if path else b"" for name, path in self._files.items()
        )
        self._check(authorities)
        return chain, key, authorities

    def _check(self, authorities: bytes) -> None:
        """gRPC itself would say nothing of what is wrong, or only at the first handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain, key = self._files["tls_cert"], self._files["tls_key"]
        try:
            context.load_cert_chain(chain, key, password=_no_password)
        except (OSError, ValueError) as error:  # also ssl.SSLError
            raise ConfigurationError(
                f"tls_cert, tls_key: {printable(chain)} and {printable(key)} can't be used:"
                f" {_reason(error)}; they need a PEM chain, and the key of its first certificate"
            ) from error
        if not authorities:
            if self._files["tls_client_ca"]:
                raise ConfigurationError(
                    f"tls_client_ca: {printable(self._files['tls_client_ca'])} is empty; it needs"
                    " PEM certificates"
                )
            return
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"tls_client_ca: {printable(self._files['tls_client_ca'])} can't be used:"
                f" {_reason(error)}; it needs PEM certificates"
            ) from error


def _configuration(found: tuple[bytes, ...]) -> grpc.ServerCertificateConfiguration:
    chain, key, authorities = found
    return grpc.ssl_server_certificate_configuration([(key, chain)], authorities or None)


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _bytes(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{name}: {printable(path)} can't be read: {error.strerror}"
        ) from error


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return str(error)


def _fingerprint(chain: bytes) -> str:
    """Of the first certificate, as `openssl x509 -fingerprint -sha256` writes it."""
    first = chain[: chain.index(b"-----END CERTIFICATE-----")] + b"-----END CERTIFICATE-----"
    begin = first.index(b"-----BEGIN CERTIFICATE-----")
    der = ssl.PEM_cert_to_DER_cert(first[begin:].decode("ascii"))
    return hashlib.sha256(der).digest().hex(":").upper()
