"""Every setting: one frozen struct, read once from flags and environment; a bad value names itself at start."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICES: Final = ("credits", "shadow", "locator")
_Port = Annotated[int, Meta(ge=0, le=65535)]


class SettingRefused(Exception):
    """A setting has a value that cannot be; the text names the variable and the reason."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The server's settings. Each field is a flag `--name` and a variable `SHIELDX_NAME`; flags win."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: _Port = 5004
    shadow_port: _Port = 5005
    data_dir: Path = Path(".shieldx")
    services: tuple[str, ...] = SERVICES
    redis_url: str = ""
    database_url: str = ""
    migrate_database_url: str = ""
    root_key: str = ""
    audit_key: str = ""
    checkpoint_keys: str = ""
    checkpoint_key_file: str = ""
    witnesses: str = ""
    master_keys: str = ""
    master_key_file: str = ""
    payment_keep_days: Annotated[int, Meta(ge=1, le=36_600)] = 540
    archive_after_days: Annotated[int, Meta(ge=0, le=36_600)] = 0
    backup_dir: str = ""
    backup_keep_days: Annotated[int, Meta(ge=1, le=36_600)] = 30
    webhook_key: str = ""
    webhook_old_key: str = ""
    webhook_allow_http: bool = False
    webhook_allow_networks: tuple[str, ...] = ()
    webhook_ports: tuple[int, ...] = (443, 8443)
    verify_interval_seconds: Annotated[int, Meta(ge=60, le=31_536_000)] = 86_400
    check_networks: tuple[str, ...] = ()
    ledger_shards: Annotated[int, Meta(ge=1, le=256)] = 1
    postgres_pool_size: Annotated[int, Meta(ge=2, le=50)] = 6
    postgres_pool_max: Annotated[int, Meta(ge=2, le=200)] = 200
    shutdown_delay_seconds: Annotated[int, Meta(ge=0, le=600)] = 0
    shutdown_grace_seconds: Annotated[int, Meta(ge=1, le=600)] = 20
    header_timeout_seconds: Annotated[int, Meta(ge=1, le=300)] = 10
    connections_max: Annotated[int, Meta(ge=1, le=100_000)] = 4096
    log_level: Annotated[str, Meta(pattern=r"^(debug|info|warning|error)\Z")] = "info"
    traces_url: str = ""
    traces_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.01
    revision: Annotated[str, Meta(max_length=64)] = ""
    replica_name: Annotated[str, Meta(min_length=1, max_length=64)] = f"{socket.gethostname()[:40]}-{os.getpid()}"

    def __repr__(self) -> str:
        """Show no secret: URLs may hold passwords."""
        return f"Settings(host={self.host!r}, port={self.port}, data_dir={str(self.data_dir)!r})"


DESCRIPTIONS: Final[dict[str, str]] = {
    "host": "address to listen on",
    "port": "TCP port of all calls; 0 takes a free one",
    "shadow_port": "second TCP port of the same calls; 0 takes a free one",
    "data_dir": "directory of the embedded servers, the root key and their logs",
    "services": "comma-separated list of what this process runs",
    "redis_url": "Redis to use instead of the embedded one: redis:// rediss:// unix://, redis+sentinel://host:port,.../master"
    " or redis+cluster://host:port,... (variable REDIS_URL)",
    "database_url": "Postgres to use instead of the embedded one, postgresql:// (variable DATABASE_URL)",
    "migrate_database_url": "Postgres URL of the role that owns the schema; by default the one of database_url",
    "root_key": "the root bearer key, at least 16 characters; by default made once and kept in the data directory",
    "audit_key": "secret of the row seals, at least 16 characters; by default derived from the root key",
    "checkpoint_keys": "Ed25519 seeds that sign checkpoints, 64 hex digits each, newest first, separated by commas",
    "checkpoint_key_file": "file with such seeds, one a line; by default one is made once and kept in the data directory",
    "witnesses": "witnesses of checkpoints: verifier key, space, URL; several separated by commas",
    "master_keys": "keys that wrap those of private data, 64 hex digits or base64 each, the current one first, by commas",
    "master_key_file": "file with such keys, one a line; by default one is made once and kept in the data directory",
    "payment_keep_days": "days for which payment data is kept; a charge can be disputed for 540",
    "archive_after_days": "days after its end at which a quarter of the chain is archived, at least 2; 0 for never",
    "backup_dir": "directory of backups, which the server watches if it is set; by default backups in the data directory",
    "backup_keep_days": "days for which backups are kept; the newest good one stays however old it is",
    "webhook_key": "secret from which those of webhooks are derived, at least 16 characters; by default from the root key",
    "webhook_old_key": "the webhook_key before, until every endpoint's secret has been rotated",
    "webhook_allow_http": "true lets webhooks go over plain http too",
    "webhook_allow_networks": "networks that webhooks may go to although they are not public, such as 10.1.0.0/16",
    "webhook_ports": "the only ports that webhooks may go to; 0 for any",
    "verify_interval_seconds": "seconds between two verifications of the whole ledger, which one replica does by itself",
    "check_networks": "networks that active checks of instances may reach although they are special, such as 127.0.0.0/8",
    "ledger_shards": "number of ledger shards; fixed when the ledger is created",
    "postgres_pool_size": "Postgres connections for reads at first; each shard takes one more",
    "postgres_pool_max": "how far that may grow while callers wait and Postgres has connections to spare",
    "shutdown_delay_seconds": "seconds from SIGTERM during which requests are still taken, /ready says 503, answers close",
    "shutdown_grace_seconds": "seconds that SIGTERM gives open requests",
    "header_timeout_seconds": "seconds within which a connection must send its first request header",
    "connections_max": "connections at once; more are closed",
    "log_level": "debug, info, warning or error",
    "traces_url": "where traces go, OTLP over HTTP, such as http://collector:4318/v1/traces; needs the extra otel",
    "traces_ratio": "share of the requests without a traceparent that are traced, 0 to 1",
    "revision": "source revision that this was built from, for shieldx_build_info",
    "replica_name": "name of this process in ledger_shards and logs",
}

_BEARER_KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
REDIS_SCHEMES: Final = (
    "redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://",
)  # fmt: skip
# Variables that people expect without the prefix.
_PLAIN: Final = {"redis_url": "REDIS_URL", "database_url": "DATABASE_URL"}


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return _PLAIN.get(name, f"SHIELDX_{name.upper()}")


def read_settings(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Return the settings of flags (by field name, None where absent) over environment over defaults.

    Raises SettingRefused naming the flag or variable, and the reason, never a secret's value.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        flag = flags.get(field.name)
        source = f"--{field.name.replace('_', '-')}" if flag is not None else variable_of(field.name)
        text = flag if flag is not None else environment.get(variable_of(field.name))
        if text is None or (text == "" and flag is None):
            continue
        try:
            values[field.name] = _parse(field, text)
        except (msgspec.ValidationError, ValueError) as error:
            raise SettingRefused(f"{source}: {str(error).replace('`', '')} ({DESCRIPTIONS[field.name]})") from None
    settings = Settings(**values)
    _check(settings)
    return settings


def _parse(field: msgspec.structs.FieldInfo, text: str) -> object:
    if field.name == "services":
        services = tuple(_parts(text))
        unknown = [name for name in services if name not in SERVICES]
        if unknown or not services:
            raise ValueError(f"Expected some of {', '.join(SERVICES)}")
        return services
    if field.type is Path:
        return Path(text)
    if field.name in {"webhook_allow_networks", "check_networks"}:
        return tuple(str(ip_network(part)) for part in _parts(text))
    if field.name == "webhook_ports":
        return tuple(msgspec.convert([_whole(part) for part in _parts(text)], list[_Port]))
    if field.type is bool:
        if text not in {"true", "false"}:
            raise ValueError("Expected true or false")
        return text == "true"
    if isinstance(field.default, float):
        return msgspec.convert(_decimal(text), field.type)
    return msgspec.convert(_whole(text) if isinstance(field.default, int) else text, field.type, strict=False)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("Expected a whole number")
    return int(text)


def _decimal(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("Expected a decimal number")
    return float(text)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check(settings: Settings) -> None:
    if bool(settings.redis_url) != bool(settings.database_url):
        given, other = ("REDIS_URL", "DATABASE_URL") if settings.redis_url else ("DATABASE_URL", "REDIS_URL")
        raise SettingRefused(
            f"{other}: Expected a URL because {given} is set; set both, or neither for the embedded servers"
        )
    if settings.archive_after_days == 1:
        raise SettingRefused("SHIELDX_ARCHIVE_AFTER_DAYS: Expected 0 or at least 2")
    if settings.redis_url and not settings.redis_url.startswith(REDIS_SCHEMES):
        raise SettingRefused(f"REDIS_URL: Expected one of {', '.join(REDIS_SCHEMES)}")
    for name in ("database_url", "migrate_database_url"):
        url = getattr(settings, name)
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise SettingRefused(f"{variable_of(name)}: Expected postgresql://")
    if settings.traces_url and not settings.traces_url.startswith(("http://", "https://")):
        raise SettingRefused("SHIELDX_TRACES_URL: Expected http:// or https://")
    for name in ("root_key", "audit_key", "webhook_key", "webhook_old_key"):
        if 0 < len(getattr(settings, name)) < 16:
            raise SettingRefused(f"{variable_of(name)}: Expected at least 16 characters")
    if settings.root_key and _BEARER_KEY.fullmatch(settings.root_key) is None:
        raise SettingRefused(
            f"{variable_of('root_key')}: Expected printable ASCII without a space or a line break at either end, since a "
            "header carries it"
        )
