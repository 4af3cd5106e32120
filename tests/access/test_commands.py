"""`shieldx keys` on a real database."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from app.access.key_text import is_well_formed
from app.cli import main
from tests.stores import PrivatePostgres, run_apart


class Console:
    """Runs sub-commands on a database and returns exit code, output and errors."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        code = main(["keys", *words, "--database-url", self.url])
        out, err = self._capsys.readouterr()
        return code, out, err

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("list", "--json")[1])
        return found


@pytest.fixture
def console(database_url: str, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(database_url, capsys)


def test_a_key_is_printed_alone_so_that_a_script_can_take_it(console: Console) -> None:
    code, out, err = console.run(
        "create", "--name", "gateway", "--role", "writer", "--tenant", "b", "--tenant", "a", "--service", "credits",
        "--expires-days", "30", "--rate", "0.5", "--burst", "2",
    )  # fmt: skip

    assert code == 0
    assert is_well_formed(out.strip())
    assert out.strip() not in err
    key = console.listed()[0]
    assert key["key_id"] in err
    assert (key["role"], key["tenants"], key["services"]) == ("writer", ["a", "b"], ["credits"])
    assert (key["rate_limit"], key["created_by"], key["status"]) == ({"rate": 0.5, "burst": 2}, "console", "active")


def test_keys_are_listed_for_people_without_their_secrets(console: Console) -> None:
    secret = console.run("create", "--name", "a", "--role", "reader")[1].strip()

    _, out, _ = console.run("list")

    heading, row = out.splitlines()
    assert heading.split() == [
        "key_id", "shown", "name", "role", "status", "tenants", "services", "expires_at", "last_used_at",
    ]  # fmt: skip
    assert row.split()[2:] == ["a", "reader", "active", "-", "-", "-", "-"]
    assert secret not in out


def test_a_key_is_rotated_and_revoked(console: Console) -> None:
    first = console.run("create", "--name", "a", "--role", "reader")[1].strip()
    key_id = console.listed()[0]["key_id"]

    code, second, err = console.run("rotate", key_id, "--overlap-seconds", "60")
    new_id = re.findall(r"key_\w{16}", err)[0]
    revoked = console.run("revoke", new_id)

    assert code == 0
    assert second.strip() != first
    assert revoked[0] == 0
    assert {key["key_id"]: key["status"] for key in console.listed()} == {key_id: "rotated", new_id: "revoked"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("revoke", "key_" + "0" * 16), "no key"),
        (("rotate", "key_" + "0" * 16), "no key"),
        (("create", "--name", "", "--role", "reader"), "length"),
        (("create", "--name", "x", "--role", "reader", "--expires-days", "-1"), "/expires_at: Expected a time in the future"),
        (("create", "--name", "x", "--role", "reader", "--expires-days", "1e9"), "/expires_at: Expected a time before the year"),
        (("create", "--name", "x", "--role", "reader", "--expires-days", "nan"), "/expires_at: Expected a time before the year"),
        (("create", "--name", "x", "--role", "reader", "--rate", "5"), "burst"),
        (("create", "--name", "x", "--role", "reader", "--tenant", "a/b"), "tenants"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(console: Console, words: tuple[str, ...], reason: str) -> None:
    code, out, err = console.run(*words)

    assert (code, out) == (2, "")
    assert err.startswith("shieldx: ")
    assert reason in err
    assert console.listed() == []


def test_a_database_that_no_server_has_prepared_is_refused(
    postgres_server: PrivatePostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = Console(run_apart(postgres_server.make_own_database()), capsys).run("list")

    assert code == 2
    assert "shieldx migrate up" in err


def test_a_database_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = Console("postgresql://nobody@127.0.0.1:1/none", capsys).run("list")

    assert code == 2
    assert err.startswith("shieldx: Postgres: ")
