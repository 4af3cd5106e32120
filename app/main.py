"""The wiring: what starts, in which order, and which routes exist."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shlex
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
from app.audit.signing_keys import SeedsRefused, audit_key, parse_seeds
from app.audit.witness import Witness, parse_witnesses
from app.backup.places import backup_directory
from app.backup.series import BackupSeries
from app.backup.upgrade import migrate_embedded
from app.credits.api import CREDITS, PRIVACY, outage
from app.credits.audit_api import AUDIT_ROUTES
from app.credits.opening import Controls, Credits, Signing, Stores
from app.credits.privacy_api import PRIVACY_ROUTES
from app.credits.routes import ROUTES as CREDIT_ROUTES
from app.db.migrations import MigrationRefused
from app.db.topology import Topology, make_topology
from app.embedded import EmbeddedServers, Endpoints, checkpoint_keys, root_key, secret_file
from app.locator.api import LOCATOR
from app.locator.opening import Locator
from app.locator.routes import LOCATOR_ROUTES
from app.loop_lag import LoopLag
from app.metrics import Metrics
from app.operations import METRICS, OPERATION_ROUTES
from app.otel import open_traces
from app.privacy.envelope import MasterKeyRefused, make_master_key_file, read_master_keys
from app.privacy.opening import Privacy
from app.settings import SettingRefused, Settings
from app.shadow.api import EXPERIMENT_ROUTES, SHADOW
from app.shadow.flags_api import FLAG_ROUTES
from app.shadow.opening import Places, Shadow
from app.shadow.rules_api import RULE_ROUTES, RULES
from app.turns import pause
from app.web.connections import ConnectionLimits, EdgeRunner
from app.web.console import console_route
from app.web.docs import reference_routes
from app.web.edge import set_up
from app.web.fastpath import PATHS
from app.web.outgoing import Outgoing
from app.web.routes import Route, add_routes
from app.web.traced import TRACES
from app.web.watches import WATCHES, Watches
from app.webhooks.api import WEBHOOK_ROUTES, WEBHOOKS
from app.webhooks.opening import Webhooks
from app.webhooks.signature import signing_keys
from app.webhooks.target import rules_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.privacy.envelope import MasterKeys
    from app.traces import Traces

log = logging.getLogger(__name__)

MASTER_KEY_FILE: Final = "master.key"  # in the data directory; 64 hex digits a line, the current key first
GC_ALLOCATIONS: Final = 50_000  # container objects between two collections: about 10 MB of garbage at most


def redis_topology(redis_url: str, metrics: Metrics) -> Topology:
    """Return what REDIS_URL names. Raises SettingRefused."""
    try:
        return make_topology(redis_url, metrics.redis)
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


def master_keys(settings: Settings) -> MasterKeys:
    """Return the keys that wrap the data keys of private data: those that are set, or those of the data directory.

    Raises MasterKeyRefused, and OSError for a file that cannot be read; neither shows a key.
    """
    given = {"SHIELDX_MASTER_KEYS": settings.master_keys, "SHIELDX_MASTER_KEY_FILE": settings.master_key_file}
    return read_master_keys(given) or make_master_key_file(secret_file(settings.data_dir, MASTER_KEY_FILE))


def checked_master_keys(settings: Settings) -> MasterKeys:
    """Return the same, for a start: raises SettingRefused when there is no usable one."""
    try:
        return master_keys(settings)
    except (MasterKeyRefused, OSError) as error:
        reason = str(error) if isinstance(error, MasterKeyRefused) else f"cannot read the file ({type(error).__name__})"
        raise SettingRefused(f"SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE: {reason}") from None


def watch_backups(settings: Settings, metrics: Metrics) -> None:
    """Export how old backups are, where a setting names their directory."""
    if settings.backup_dir:
        metrics.registry.register(BackupSeries(backup_directory(settings)))


@contextlib.asynccontextmanager
async def embedded_stores(settings: Settings) -> AsyncIterator[Endpoints]:
    """Run the embedded servers, their schema that of this release: nobody else serves from them.

    Raises what the servers and `migrate_embedded` raise.
    """

    def report(name: str, code: int) -> None:
        log.error("embedded server ended", extra={"server": name, "code": code})

    async with EmbeddedServers(settings.data_dir, on_exit=report) as urls:
        directory = backup_directory(settings)
        applied = await migrate_embedded(
            urls.admin_database_url, directory.path, settings.backup_keep_days, settings.services
        )
        if applied:
            log.info("migrations applied", extra={"migrations": applied})
        yield urls


def make_app(settings: Settings, on_crash: Callable[[BaseException], None], traces: Traces | None = None) -> web.Application:
    """Return the application: its parts start left to right and stop right to left.

    traces  takes traces; by default what the settings ask for
    Raises SettingRefused.
    """
    app = web.Application()
    add_traces(app, settings, traces)
    key = settings.root_key or root_key(settings.data_dir)
    metrics = Metrics(settings.revision)
    app[METRICS] = metrics
    watch_backups(settings, metrics)

    async def record(kind: str, details: dict[str, Any]) -> None:
        await app[CREDITS].record(kind, details)

    controls = Controls(
        Access(key, record), Webhooks(signing_keys(settings, key), rules_of(settings)),
        Privacy(lambda: master_keys(settings), record, settings.payment_keep_days), settings.archive_after_days,
    )  # fmt: skip
    metrics.add(controls.access.series.collect)
    metrics.add(controls.webhooks.series.collect)
    app[ACCESS], app[WEBHOOKS], app[PRIVACY] = controls.access, controls.webhooks, controls.privacy
    set_up(app, controls.access.gate.entrance, metrics.record, outage)
    add_watches(app)
    services = (*add_shadow(app, settings, metrics, on_crash), *add_locator(app, settings, metrics))
    if "credits" in settings.services:
        services = (*CREDIT_ROUTES, *services)
    about = (*OPERATION_ROUTES, console_route(__version__))
    routes = (*services, *AUDIT_ROUTES, *KEY_ROUTES, *WEBHOOK_ROUTES, *PRIVACY_ROUTES, *about)
    add_routes(app, (*routes, *reference_routes(routes, title="shieldx", version=__version__)))

    async def stores(app: web.Application) -> AsyncIterator[None]:
        """The embedded servers, unless URLs are given; then credits on top of them."""
        if settings.redis_url:
            owner = settings.migrate_database_url or settings.database_url
            async with run_credits(app, settings.redis_url, settings.database_url, owner):
                yield
        else:
            async with (
                embedded_stores(settings) as urls,
                run_credits(app, urls.redis_url, urls.database_url, urls.admin_database_url),
            ):
                yield

    @contextlib.asynccontextmanager
    async def run_credits(app: web.Application, redis_url: str, database_url: str, owner: str) -> AsyncIterator[None]:
        async with observing(app), Outgoing() as client:
            controls.privacy.load(checked_master_keys(settings))
            if settings.redis_url and not settings.master_keys and not settings.master_key_file:
                log.warning("private data is under a key of this process's data directory: give all replicas the same one")
            signing = Signing(checkpoint_seeds(settings), named_witnesses(settings), client.post)
            credits_ = Credits(
                Stores(redis_topology(redis_url, metrics), database_url, owner, settings.postgres_pool_size,
                       settings.postgres_pool_max, settings.ledger_shards,
                       audit_key(settings, key), settings.replica_name, settings.verify_interval_seconds,
                       settings.services),
                signing, controls, metrics, on_crash, traced=TRACES in app,
            )  # fmt: skip
            app[CREDITS] = credits_
            credits_.start()
            places = Places(redis_url, database_url, settings.replica_name)
            try:
                async with open_shadow(app, places), open_locator(app, credits_.stores.topology, on_crash):
                    yield
            finally:
                await credits_.stop()

    app.cleanup_ctx.append(stores)
    return app


def add_traces(app: web.Application, settings: Settings, traces: Traces | None) -> None:
    """Let `traces`, or what the settings ask for, take traces of the application's requests. Before its routes are added."""
    taken_by = traces or open_traces(settings)
    if taken_by is not None:
        app[TRACES] = taken_by


@contextlib.asynccontextmanager
async def observing(app: web.Application) -> AsyncIterator[None]:
    """Sample the lag of the event loop meanwhile, and send the last traces at the end."""
    lag = LoopLag(app[METRICS].lag)
    lag.start()
    try:
        yield
    finally:
        lag.stop()
        if TRACES in app:
            await app[TRACES].close()


def add_watches(app: web.Application) -> None:
    """Give the application one room for all who wait for changes, which ends their waiting when the server stops."""
    watches = app[WATCHES] = Watches()

    async def end_watches(_app: web.Application) -> None:
        watches.close()

    app.on_shutdown.append(end_watches)


def add_shadow(
    app: web.Application, settings: Settings, metrics: Metrics, on_crash: Callable[[BaseException], None]
) -> tuple[Route, ...]:
    """Give the application shadow, if this process is to run it, and return its routes."""
    if "shadow" not in settings.services:
        return ()
    shadow = Shadow(metrics, on_crash, app[WATCHES])
    app[SHADOW], app[RULES] = shadow, shadow.rules
    return (*EXPERIMENT_ROUTES, *RULE_ROUTES, *FLAG_ROUTES)


@contextlib.asynccontextmanager
async def open_shadow(app: web.Application, places: Places) -> AsyncIterator[None]:
    """Run shadow, if the application has it, once the ledger's schema is there."""
    shadow = app.get(SHADOW)
    if shadow is None:
        yield
        return
    shadow.start(places, lambda: app[CREDITS].book is not None)
    try:
        yield
    finally:
        await shadow.stop()


def add_locator(app: web.Application, settings: Settings, metrics: Metrics) -> tuple[Route, ...]:
    """Give the application the locator, if this process is to run it, and return its routes."""
    if "locator" not in settings.services:
        return ()
    app[LOCATOR] = Locator([ip_network(text) for text in settings.check_networks], metrics, app[WATCHES])
    return LOCATOR_ROUTES


@contextlib.asynccontextmanager
async def open_locator(
    app: web.Application, topology: Topology, on_crash: Callable[[BaseException], None]
) -> AsyncIterator[None]:
    """Run the locator, if the application has it."""
    locator = app.get(LOCATOR)
    if locator is None:
        yield
        return
    locator.start(topology, on_crash)
    try:
        yield
    finally:
        await locator.stop()


async def wait_open(app: web.Application) -> None:
    """Return once everything that this process runs is open."""
    await app[CREDITS].wait_open()
    shadow = app.get(SHADOW)
    if shadow is not None:
        await shadow.wait_open()


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
    stopping, hurried = asyncio.Event(), asyncio.Event()
    faults: list[BaseException] = []

    def on_crash(error: BaseException) -> None:
        faults.append(error)
        stopping.set()
        hurried.set()

    def on_signal() -> None:
        (hurried if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    app = make_app(settings, on_crash)
    limits = ConnectionLimits(header_timeout_s=settings.header_timeout_seconds, connections_max=settings.connections_max)
    runner = EdgeRunner(app, limits, shutdown_timeout=settings.shutdown_grace_seconds, handle_signals=False)
    await runner.setup()
    try:
        ports = [await _listen(runner, settings.host, port) for port in (settings.port, settings.shadow_port)]
        opened = asyncio.create_task(wait_open(app))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({opened, stop}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done() and not opened.cancelled():
            calm_collector()  # about 80 ms, in which nobody who waits for the line below waits for an answer
            print(f"shieldx ready at http://{settings.host}:{ports[0]} and http://{settings.host}:{ports[1]}", flush=True)
            if not settings.root_key:
                print(f"read the root key with: shieldx key --data-dir {shlex.quote(str(settings.data_dir))}", flush=True)
        opened.cancel()
        await stop
        await leave(app, settings.shutdown_delay_seconds, hurried)
    finally:
        await runner.cleanup()
    for error in faults:
        _report(error)
    return 1 if faults else 0


async def leave(app: web.Application, delay_s: float, hurried: asyncio.Event) -> None:
    """Let clients go elsewhere for `delay_s`, or until `hurried`: requests are served, /ready says 503, answers close.

    A load balancer needs a moment to see that a replica ends, and a client that keeps a connection has to be told: one that
    is closed between two requests can lose the next one.
    """
    app[PATHS].leaving = True
    await pause(hurried, delay_s)


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
