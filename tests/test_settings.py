"""Settings: where they come from, and that a bad one names itself and shows no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.settings import DESCRIPTIONS, SERVICES, SettingRefused, Settings, read_settings, variable_of

NAMES = [field.name for field in msgspec.structs.fields(Settings)]
SECRETS = [
    "root_key", "audit_key", "checkpoint_keys", "webhook_key", "webhook_old_key", "redis_url", "database_url",
    "migrate_database_url",
]  # fmt: skip
STORES = {"REDIS_URL": "redis://localhost", "DATABASE_URL": "postgresql://localhost/x"}


def test_without_anything_the_defaults_hold() -> None:
    settings = read_settings({}, {})

    assert (settings.host, settings.port, settings.shadow_port, settings.data_dir) == (
        "127.0.0.1",
        5004,
        5005,
        Path(".shieldx"),
    )
    assert (settings.services, settings.redis_url, settings.database_url) == (SERVICES, "", "")


@pytest.mark.parametrize("key", ["long-enough-for-a-key\n", " long-enough-for-a-key", "long-enough-for-a-k\u00e9y"])
def test_a_root_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingRefused, match="SHIELDX_ROOT_KEY: ") as refused:
        read_settings({}, {"SHIELDX_ROOT_KEY": key})

    assert key.strip() not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described_and_has_a_variable(name: str) -> None:
    assert DESCRIPTIONS[name]
    assert variable_of(name) in {f"SHIELDX_{name.upper()}", name.upper()}


def test_nothing_is_described_that_is_no_setting() -> None:
    assert set(DESCRIPTIONS) == set(NAMES)


def test_a_variable_sets_and_a_flag_wins() -> None:
    environment = {"SHIELDX_PORT": "6000", "SHIELDX_HOST": "192.0.2.1", "SHIELDX_DATA_DIR": "/var/lib/x"}

    settings = read_settings({"port": "7000", "host": None}, environment)

    assert (settings.port, settings.host, settings.data_dir) == (7000, "192.0.2.1", Path("/var/lib/x"))


def test_an_empty_variable_is_none() -> None:
    assert read_settings({}, {"SHIELDX_PORT": "", "REDIS_URL": "", "DATABASE_URL": ""}) == read_settings({}, {})


BAD: list[tuple[str, list[str]]] = [
    ("port", ["x", "-1", "65536", "1.5", "1e3"]),
    ("shadow_port", ["x", "65536"]),
    ("ledger_shards", ["0", "257", "two", "true"]),
    ("postgres_pool_size", ["1", "51"]),
    ("postgres_pool_max", ["1", "201"]),
    ("shutdown_grace_seconds", ["0", "601", "soon"]),
    ("header_timeout_seconds", ["0", "301"]),
    ("connections_max", ["0", "100001"]),
    ("log_level", ["INFO", "trace", "info\n"]),
    ("services", ["credit", "credits,billing", ",", " "]),
    ("replica_name", ["x" * 65]),
    ("webhook_allow_http", ["yes", "1", "True"]),
    ("webhook_allow_networks", ["10.0.0.1/8", "10.0.0.0/33", "here", "10.0.0.0/8,x"]),
    ("webhook_ports", ["x", "65536", "443;80", "-1"]),
]
CASES = [(name, value) for name, values in BAD for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_names_its_variable_and_what_is_expected(name: str, value: str) -> None:
    with pytest.raises(SettingRefused) as refused:
        read_settings({}, {f"SHIELDX_{name.upper()}": value})

    assert str(refused.value).startswith(f"SHIELDX_{name.upper()}: ")
    assert DESCRIPTIONS[name] in str(refused.value)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_flag_names_the_flag(name: str, value: str) -> None:
    with pytest.raises(SettingRefused, match=rf"^--{name.replace('_', '-')}: "):
        read_settings({name: value}, {})


@pytest.mark.parametrize("given", list(STORES))
def test_one_store_alone_is_refused_and_the_other_is_named(given: str) -> None:
    other = next(name for name in STORES if name != given)

    with pytest.raises(SettingRefused, match=rf"^{other}: .*{given}"):
        read_settings({}, {given: STORES[given]})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REDIS_URL", "http://secret"), ("REDIS_URL", "secret:6379"), ("DATABASE_URL", "mysql://secret"),
     ("SHIELDX_MIGRATE_DATABASE_URL", "secret"), ("SHIELDX_ROOT_KEY", "secret"), ("SHIELDX_AUDIT_KEY", "secret-of-15-ch"),
     ("SHIELDX_WEBHOOK_KEY", "secret-of-15-ch"), ("SHIELDX_WEBHOOK_OLD_KEY", "secret")],
)  # fmt: skip
def test_a_bad_secret_names_its_variable_and_is_not_shown(variable: str, value: str) -> None:
    with pytest.raises(SettingRefused) as refused:
        read_settings({}, STORES | {variable: value})

    assert str(refused.value).startswith(f"{variable}: ")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["redis://h", "rediss://h:1/2", "unix:///run/redis.sock?db=1"])
@pytest.mark.parametrize("database", ["postgresql://h/x", "postgres://h/x"])
def test_urls_of_both_stores_are_taken(scheme: str, database: str) -> None:
    settings = read_settings({}, {"REDIS_URL": scheme, "DATABASE_URL": database})

    assert (settings.redis_url, settings.database_url) == (scheme, database)


def test_printed_settings_show_no_secret() -> None:
    hidden: dict[str, Any] = dict.fromkeys(SECRETS, "postgresql://user:hunter2@host")
    settings = Settings(**hidden)

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_services_may_be_spaced() -> None:
    assert read_settings({}, {"SHIELDX_SERVICES": " credits , "}).services == ("credits",)


def test_webhooks_may_be_let_out_further() -> None:
    environment = {
        "SHIELDX_WEBHOOK_ALLOW_HTTP": "true", "SHIELDX_WEBHOOK_PORTS": "80, 9000",
        "SHIELDX_WEBHOOK_ALLOW_NETWORKS": "10.1.0.0/16, ::1",
    }  # fmt: skip

    settings = read_settings({}, environment)

    assert (settings.webhook_allow_http, settings.webhook_ports) == (True, (80, 9000))
    assert settings.webhook_allow_networks == ("10.1.0.0/16", "::1/128")
