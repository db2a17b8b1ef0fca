"""The server as one object: what it is made of, the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

import grpc
import structlog
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from structlog.typing import FilteringBoundLogger

from jobwire_server.broker.router import Router
from jobwire_server.broker.wiring import build_parts
from jobwire_server.domain.server_info import ServerFacts
from jobwire_server.domain.units import parse_address
from jobwire_server.host.certificates import Certificates
from jobwire_server.host.event_loop import unless
from jobwire_server.host.grpc_options import server_options
from jobwire_server.host.http import OK, HttpServer, Verdict
from jobwire_server.host.settings import Settings
from jobwire_server.host.shared_port import refused
from jobwire_server.servicers import SERVICE_NAMES, generic_handlers
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.servicers.introspection import add_introspection
from jobwire_server.servicers.records import JobSpecRecords
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import Connection, connect
from jobwire_server.store.connection.engine import EmbeddedValkey
from jobwire_server.store.connection.monitor import StoreMonitor
from jobwire_server.store.connection.preflight import Inspection, check_store
from jobwire_server.telemetry.loop_delay import LoopDelay
from jobwire_server.telemetry.metrics import Metrics, RpcMetrics
from jobwire_server.telemetry.shared_counters import SharedCounters, State

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

STUCK_S = 15.0
"""An event loop that has not come round for so long fails /healthz."""
STUCK_METRIC = "jobwire_stuck_handlers"
STUCK_HELP = "Handlers of the workers here that go on although they were told to stop"
SERVED_WHILE_UNFIT = ("jobwire.v1.WorkerService", "jobwire.v1.AdminService")
"""Services of which a server that accepts no new jobs says that they are served."""
LAST_WORD_S = 0.25
"""For answers that are written but not yet sent when the last call has ended."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.server")


@dataclass(frozen=True, slots=True)
class Sibling:
    """What a server is told that is one process of several on a port."""

    index: int
    """From 0."""
    processes: int
    counters: SharedCounters
    """Where it counts; the supervisor shows them, so that the server serves no HTTP itself."""
    store_url: str
    """The store, which the supervisor runs if it is embedded."""
    embedded: bool


class Application:
    """A whole server.

    Args:
        settings: Everything that can be chosen.
        sibling: None: it has the port for itself.
    """

    def __init__(self, settings: Settings, sibling: Sibling | None = None) -> None:
        self.settings = settings
        self._sibling = sibling
        self.server_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._rpc = RpcMetrics(sibling.counters if sibling is not None else None)
        self._loop_delay = LoopDelay(self._rpc)
        self.facts: ServerFacts | None = None
        """What is running; set by start."""
        self.address = settings.listen
        """Where gRPC is served; with the real port after start."""
        self.http: HttpServer | None = None
        self._engine: EmbeddedValkey | None = None
        self._connection: Connection | None = None
        self._router: Router | None = None
        self._monitor: StoreMonitor | None = None
        self._condition = StoreCondition()
        self._server: grpc.aio.Server | None = None
        self._certificates: Certificates | None = None
        self._health = health.aio.HealthServicer()
        self._interceptor = CallInterceptor(self._rpc, log_all=settings.log_requests == "all")
        self._draining = False

    async def start(self) -> None:
        """Start the store, the broker and the listeners, in this order.

        Raises:
            StoreRefused: The store can't be used.
            AddressInUse: An address can't be bound.
            ConfigurationError: Something else is wrong with the settings.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def _start(self) -> None:
        settings, options, sibling = self.settings, self.settings.broker_options(), self._sibling
        url = sibling.store_url if sibling is not None else settings.redis_url
        embedded = sibling.embedded if sibling is not None else not url
        if not url:
            self._engine = EmbeddedValkey(settings.data_dir, settings.durability)
            await self._engine.start()
            url = self._engine.url
        self._connection = connect(url)
        store = await check_store(
            self._connection,
            embedded=embedded,
            allow_volatile=settings.allow_volatile_store,
            always=settings.durability == "always",
            wait_s=settings.store_wait.total_seconds(),
            replicas=settings.wait_replicas,
        )
        if sibling is None or sibling.index == 0:
            for warning in store.warnings:
                log.warning(warning)
        self.facts = ServerFacts(
            server_id=self.server_id,
            version=version("jobwire"),
            started_at_ms=time.time_ns() // 1_000_000,
            store=store,
            limits=options.limits,
            processes=sibling.processes if sibling is not None else 1,
            process_index=sibling.index if sibling is not None else 0,
        )
        condition = self._condition = StoreCondition(self._connection.address)
        parts = build_parts(
            self._connection,
            options,
            JobSpecRecords(),
            self.server_id,
            moments_settled=self._rpc.settled,
            condition=condition,
        )
        self._router = Router(parts)
        await self._router.start()
        inspection = Inspection(
            self._connection,
            allow_volatile=settings.allow_volatile_store,
            always=settings.durability == "always",
        )
        self._monitor = StoreMonitor(self._connection, condition, self._store_changed, inspection)
        await self._listen(self._router, self.facts)
        self._serve_http()
        await self._store_changed()
        self._monitor.start()
        self._loop_delay.start()
        self._show(State.SERVING)

    async def look_at_certificates(self) -> None:
        """Read the certificates again if their files have changed."""
        if self._certificates is not None:
            await self._certificates.look()

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Refuse new calls, let those in hand end, then stop everything. Idempotent.

        Args:
            grace_s: How long calls in hand may take. 0: none at all.
            hurry: Once set, nothing is waited for any more.
        """
        served = self._server is not None
        if served and not self._draining:
            log.info("draining", grace_s=grace_s)
        self._draining = True
        self._show(State.DRAINING)
        self._interceptor.drain()
        await self._health.enter_graceful_shutdown()
        if grace_s > 0:
            await unless(hurry, self._drain(grace_s))
        if self._server is not None:
            await self._server.stop(None)
        if self._certificates is not None:
            await self._certificates.stop()
        if self._router is not None:
            await self._router.stop()
        if self._monitor is not None:
            await self._monitor.stop()
        self._loop_delay.stop()
        if self.http is not None:
            await asyncio.to_thread(self.http.stop)
        if self._connection is not None:
            await self._connection.close()
        if self._engine is not None:
            await self._engine.stop()
        if served:
            log.info("stopped")

    async def _drain(self, grace_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                if self._router is not None:
                    await self._router.drain(grace_s)
                if self._server is None:
                    return
                stopping = asyncio.ensure_future(self._server.stop(grace_s))
                # Watchers of the health stay until the end: they must not keep the server from it.
                while not stopping.done() and self._interceptor.in_hand:
                    await asyncio.wait({stopping}, timeout=0.02)
                await self._server.stop(LAST_WORD_S)

    async def _listen(self, router: Router, facts: ServerFacts) -> None:
        limits = facts.limits
        server = grpc.aio.server(
            interceptors=(self._interceptor,),
            options=server_options(limits, shared_port=self._sibling is not None),
        )
        server.add_generic_rpc_handlers(tuple(generic_handlers(router, facts)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_introspection(server, (*SERVICE_NAMES, health.SERVICE_NAME))
        host, _ = parse_address(self.settings.listen)
        credentials = self._credentials()
        try:
            if credentials is None:
                port = server.add_insecure_port(self.settings.listen)
            else:
                port = server.add_secure_port(self.settings.listen, credentials)
        except RuntimeError as error:
            raise refused(self.settings.listen) from error
        self.address = f"{host}:{port}"
        await server.start()
        self._server = server

    def _credentials(self) -> grpc.ServerCredentials | None:
        settings = self.settings
        if not settings.tls_cert:
            return None
        self._certificates = Certificates(
            settings.tls_cert, settings.tls_key, settings.tls_client_ca
        )
        credentials = self._certificates.credentials()
        self._certificates.start()
        return credentials

    def _serve_http(self) -> None:
        if self._sibling is not None or not self.settings.http_listen:
            return
        metrics = Metrics(self._rpc)
        metrics.gauge(
            "jobwire_store_up", "1: the store can be reached", lambda: float(self._store_is_up())
        )
        metrics.gauge(STUCK_METRIC, STUCK_HELP, lambda: float(self.stuck_handlers))
        if self._engine is not None:
            show_restarts(metrics, self._engine)
        host, port = parse_address(self.settings.http_listen)
        http = HttpServer(host, port, metrics, alive=self._alive, ready=self._ready)
        http.start()
        self.http = http

    @property
    def stuck_handlers(self) -> int:
        """Handlers of the workers here that go on although they were told to stop."""
        return self._router.stuck_handlers if self._router is not None else 0

    def _store_is_up(self) -> bool:
        return self._monitor is not None and self._monitor.reachable

    def _alive(self) -> Verdict:
        if self._monitor is None or time.monotonic() - self._monitor.looked_at < STUCK_S:
            return OK
        return False, "the event loop is stuck"

    def _ready(self) -> Verdict:
        if self._draining:
            return False, "draining"
        problem = self._condition.problem
        return (False, problem) if problem else OK

    def _show(self, state: State) -> None:
        if self._sibling is not None:
            self._sibling.counters.state = state

    async def _store_changed(self) -> None:
        condition = self._condition
        up, fit = not condition.away, not condition.unfit
        if self._sibling is not None:
            self._sibling.counters.store_up, self._sibling.counters.store_fit = up, fit
        for name in ("", *SERVICE_NAMES):
            # Workers may finish what they have while no new jobs are accepted.
            serves = up and (fit or name in SERVED_WHILE_UNFIT)
            await self._health.set(name, SERVING if serves else NOT_SERVING)


def show_restarts(metrics: Metrics, engine: EmbeddedValkey) -> None:
    """Show how the bundled store fares."""
    metrics.gauge(
        "jobwire_store_restarts",
        "How often the bundled store died and was started again",
        lambda: float(engine.restarts),
    )
