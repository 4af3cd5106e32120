"""The wiring: what starts, in which order, and which routes exist."""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import signal
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from aiohttp import web

from app import __version__
from app.access.api import ACCESS, KEY_ROUTES
from app.access.opening import Access
from app.audit.note import NoteRefused
from app.audit.signing_keys import SeedsRefused, parse_seeds
from app.audit.witness import Witness, parse_witnesses
from app.credits.api import CREDITS, outage
from app.credits.audit_api import AUDIT_ROUTES
from app.credits.opening import Controls, Credits, Signing, Stores
from app.credits.routes import ROUTES as CREDIT_ROUTES
from app.db.migrate import MigrationRefused
from app.db.topology import Topology, make_topology
from app.embedded import EmbeddedServers, checkpoint_keys, root_key
from app.locator.api import LOCATOR
from app.locator.opening import Locator
from app.locator.routes import LOCATOR_ROUTES
from app.metrics import Metrics
from app.operations import METRICS, OPERATION_ROUTES
from app.settings import SettingRefused, Settings
from app.web.connections import ConnectionLimits, EdgeRunner
from app.web.docs import reference_routes
from app.web.edge import set_up
from app.web.outgoing import Outgoing
from app.web.routes import Route, add_routes
from app.webhooks.api import WEBHOOK_ROUTES, WEBHOOKS
from app.webhooks.opening import Webhooks
from app.webhooks.signature import signing_keys
from app.webhooks.target import rules_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


log = logging.getLogger(__name__)

GC_ALLOCATIONS: Final = 50_000  # container objects between two collections: about 10 MB of garbage at most


def audit_key(settings: Settings, root: str) -> bytes:
    """Return the key of the row seals: the one that is set, or one derived from the root key (RFC 2104)."""
    if settings.audit_key:
        return settings.audit_key.encode()
    return hmac.digest(root.encode(), b"shieldx row seal v1", "sha256")


def redis_topology(redis_url: str) -> Topology:
    """Return what REDIS_URL names. Raises SettingRefused."""
    try:
        return make_topology(redis_url)
    except ValueError as error:
        raise SettingRefused(f"REDIS_URL: {error}") from None


def checkpoint_seeds(settings: Settings) -> tuple[bytes, ...]:
    """Return the seeds that sign checkpoints: those that are set, or those of the data directory.

    Raises SettingRefused, without showing a seed.
    """
    source, text = "SHIELDX_CHECKPOINT_KEYS", settings.checkpoint_keys
    if not text and settings.checkpoint_key_file:
        source = "SHIELDX_CHECKPOINT_KEY_FILE"
        try:
            text = Path(settings.checkpoint_key_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingRefused(f"{source}: cannot read the file ({type(error).__name__})") from None
    if not text:
        source, text = f"{settings.data_dir}/checkpoint.key", checkpoint_keys(settings.data_dir)
        if settings.redis_url:
            log.warning("checkpoints are signed with a key of this process's data directory: give all replicas the same one")
    try:
        return parse_seeds(text)
    except SeedsRefused as error:
        raise SettingRefused(f"{source}: {error}") from None


def named_witnesses(settings: Settings) -> tuple[Witness, ...]:
    """Return the witnesses that are set. Raises SettingRefused."""
    try:
        return tuple(parse_witnesses(settings.witnesses))
    except NoteRefused as error:
        raise SettingRefused(f"SHIELDX_WITNESSES: {error}") from None


def _service_routes(settings: Settings) -> tuple[Route, ...]:
    """The routes of the services that this process runs."""
    by_service = {"credits": CREDIT_ROUTES, "locator": LOCATOR_ROUTES}
    return tuple(route for name in settings.services for route in by_service[name])


def _open_locator(app: web.Application, settings: Settings, metrics: Metrics) -> Locator | None:
    """Put the locator into the application, if this process runs it; `start` opens it once Redis is known."""
    if "locator" not in settings.services:
        return None
    locator = app[LOCATOR] = Locator([ip_network(text) for text in settings.check_networks], metrics)

    async def end_watches(_app: web.Application) -> None:
        locator.watches.close()

    app.on_shutdown.append(end_watches)
    return locator


def make_app(settings: Settings, on_crash: Callable[[BaseException], None]) -> web.Application:
    """Return the application: its parts start left to right and stop right to left."""
    app = web.Application()
    key = settings.root_key or root_key(settings.data_dir)
    metrics = Metrics()
    app[METRICS] = metrics

    async def record(kind: str, details: dict[str, Any]) -> None:
        await app[CREDITS].record(kind, details)

    controls = Controls(Access(key, record), Webhooks(signing_keys(settings, key), rules_of(settings)))
    app[ACCESS], app[WEBHOOKS] = controls.access, controls.webhooks
    set_up(app, controls.access.gate.entrance, metrics.record, outage)
    routes = (*_service_routes(settings), *AUDIT_ROUTES, *KEY_ROUTES, *WEBHOOK_ROUTES, *OPERATION_ROUTES)
    locator = _open_locator(app, settings, metrics)
    add_routes(app, (*routes, *reference_routes(routes, title="shieldx", version=__version__)))

    async def stores(app: web.Application) -> AsyncIterator[None]:
        """The embedded servers, unless URLs are given; then credits on top of them."""

        def report(name: str, code: int) -> None:
            log.error("embedded server ended", extra={"server": name, "code": code})

        if settings.redis_url:
            owner = settings.migrate_database_url or settings.database_url
            async for _ in _run_credits(app, settings.redis_url, settings.database_url, owner):
                yield
        else:
            async with EmbeddedServers(settings.data_dir, on_exit=report) as urls:
                async for _ in _run_credits(app, urls.redis_url, urls.database_url, urls.admin_database_url):
                    yield

    async def _run_credits(app: web.Application, redis_url: str, database_url: str, owner: str) -> AsyncIterator[None]:
        async with Outgoing() as client:
            signing = Signing(checkpoint_seeds(settings), named_witnesses(settings), client.post)
            credits_ = Credits(
                Stores(redis_topology(redis_url), database_url, owner, settings.postgres_pool_size,
                       settings.postgres_pool_max, settings.ledger_shards,
                       audit_key(settings, key), settings.replica_name),
                signing, controls, metrics, on_crash,
            )  # fmt: skip
            app[CREDITS] = credits_
            credits_.start()
            if locator is not None:
                locator.start(credits_.stores.topology, on_crash)
            yield
            if locator is not None:
                await locator.stop()
            await credits_.stop()

    app.cleanup_ctx.append(stores)
    return app


def calm_collector() -> None:
    """Take what the start made out of the cyclic collector, and let it run rarely.

    Nothing on the hot path makes cycles; with the default threshold the collector walks young objects after
    every 700 allocations, about 20 requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


async def serve(settings: Settings) -> int:
    """Run the server until SIGTERM, SIGINT or a crash; return the exit code."""
    stopping = asyncio.Event()
    faults: list[BaseException] = []

    def on_crash(error: BaseException) -> None:
        faults.append(error)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    app = make_app(settings, on_crash)
    limits = ConnectionLimits(header_timeout_s=settings.header_timeout_seconds, connections_max=settings.connections_max)
    runner = EdgeRunner(app, limits, shutdown_timeout=settings.shutdown_grace_seconds, handle_signals=False)
    await runner.setup()
    try:
        ports = [await _listen(runner, settings.host, port) for port in (settings.port, settings.shadow_port)]
        opened = asyncio.create_task(app[CREDITS].wait_open())
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({opened, stop}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done() and not opened.cancelled():
            print(f"shieldx ready at http://{settings.host}:{ports[0]} and http://{settings.host}:{ports[1]}", flush=True)
            calm_collector()
        opened.cancel()
        await stop
    finally:
        await runner.cleanup()
    for error in faults:
        _report(error)
    return 1 if faults else 0


async def _listen(runner: EdgeRunner, host: str, port: int) -> int:
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        raise SettingRefused(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port"
        ) from None
    return int(runner.addresses[-1][1])


def _report(error: BaseException) -> None:
    if isinstance(error, MigrationRefused | asyncpg.PostgresError):
        log.critical("cannot start: %s", error)
    else:
        log.critical("crashed: %s", type(error).__name__, exc_info=error)
