"""docs/runbook.md: a section for each alert and none without, every command in it tried on a running stack."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import asyncpg
import pytest
from redis.asyncio import Redis

from app.cli import _parser
from tests.credits.ledger_client import Client, fresh
from tests.operations.live_stack import LiveOperations
from tests.operations.shipped import alerts
from tests.operations.test_alert_rules import documented, names_in, recorded
from tests.server import REPOSITORY, ROOT_KEY
from tests.stores import run_apart

RUNBOOK: Final = (REPOSITORY / "docs/runbook.md").read_text()
PARTS: Final = ("Means", "Confirm", "Mend", "Undo")
TRIED: Final = ("sh", "promql", "sql", "redis")  # run as they stand
READ: Final = ("sh by-hand", "kubectl")  # what needs a person's decision, or a cluster: read by its parser
OTHERS: Final = ("up", "ALERTS", "prometheus_", "alertmanager_")
SHELL_TIMEOUT_S: Final = 120
RESTORABLE: Final = {"name": "", "allocation": "fixed", "variants": [{"name": "old", "control": True}, {"name": "new"}]}


class Block(NamedTuple):
    """A fenced block: what it is for, and its text."""

    kind: str
    text: str


def sections() -> dict[str, str]:
    """Return the text below each heading of the third level."""
    parts = re.split(r"^### (.+)$", RUNBOOK, flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", text, flags=re.MULTILINE)[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def blocks(kind: str = "") -> list[Block]:
    """Return the fenced blocks of a kind, or all."""
    found = [Block(*one) for one in re.findall(r"^```([^\n]*)\n(.*?)^```$", RUNBOOK, re.MULTILINE | re.DOTALL)]
    return [block for block in found if not kind or block.kind == kind]


def lines(kind: str) -> list[str]:
    """Return the lines of all blocks of a kind, each once, in their order."""
    return list(dict.fromkeys(line for block in blocks(kind) for line in block.text.splitlines() if line.strip()))


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert set(sections()) == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize(("name", "text"), sections().items(), ids=list(sections()))
def test_every_section_says_what_it_means_how_to_confirm_to_mend_and_to_undo(name: str, text: str) -> None:
    assert tuple(re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)) == PARTS
    confirm = text.split("**Confirm.**")[1].split("**Mend.**", maxsplit=1)[0]
    assert "```" in confirm, f"{name}: nothing can be run to confirm it"


def test_every_block_says_what_runs_it_and_every_link_leads_somewhere() -> None:
    headings = {re.sub(r"\W+", "-", heading.lower()) for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}

    assert {block.kind for block in blocks()} == {*TRIED, *READ}
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)) <= headings


def test_what_is_left_to_a_person_is_understood_by_its_program() -> None:
    parser = _parser()
    kubectl = lines("kubectl")

    for block in (*blocks("sh by-hand"), *blocks("kubectl")):
        assert subprocess.run(["bash", "-n", "-c", block.text], check=False).returncode == 0, block.text
    for line in lines("sh by-hand"):
        if line.startswith("shieldx "):
            parser.parse_args(shlex.split(line)[1:])
    assert kubectl
    assert [line for line in kubectl if not line.startswith("kubectl -n shieldx-prod ")] == []
    assert set(re.findall(r"deployment/(\S+)", "\n".join(kubectl))) == {"shieldx-credits", "shieldx-shadow"}


def test_every_question_to_prometheus_is_answered(live: LiveOperations) -> None:
    known = documented() | recorded()

    for expr in lines("promql"):
        live.query(expr)
        names = {name for name in names_in(expr) if not name.startswith(OTHERS)}
        assert names <= known, f"{expr} reads {names - known}"


async def run_statements(database_url: str) -> int:
    """Run every statement of the SQL blocks as the owner, and take back what it changed; return how many there were."""
    session = await asyncpg.connect(database_url)
    statements = [one for block in blocks("sql") for one in block.text.split(";\n") if one.strip()]
    try:
        for statement in statements:
            transaction = session.transaction()
            await transaction.start()
            await session.fetch(statement)
            await transaction.rollback()
    finally:
        await session.close()
    return len(statements)


async def run_commands(redis_url: str) -> int:
    """Run every line of the Redis blocks; return how many there were."""
    redis = Redis.from_url(redis_url)
    try:
        for line in lines("redis"):
            await redis.execute_command(*shlex.split(line))  # type: ignore[no-untyped-call]
    finally:
        await redis.aclose()
    return len(lines("redis"))


def test_every_statement_and_every_command_of_redis_is_taken(live: LiveOperations) -> None:
    assert run_apart(run_statements(live.ledger.database_url)) > 15
    assert run_apart(run_commands(live.ledger.redis_url)) > 8


async def something_to_mend(url: str) -> dict[str, str]:
    """Make a tenant, an experiment and a service's instance; return the variables that name them."""
    async with aiohttp.ClientSession() as session:
        client = Client(session, url)
        tenant, experiment, service = await client.tenant(10), fresh("mended"), fresh("service")
        await client.done("/v1/experiments", RESTORABLE | {"name": experiment})
        await client.call("PUT", f"/v1/services/{service}/instances/a", {"host": "10.0.0.8", "port": 80, "zone": "a"})
    return {"TENANT": tenant, "EXPERIMENT": experiment, "SERVICE": service}


def test_every_shell_command_works_as_it_is_printed(live: LiveOperations, tmp_path: Path) -> None:
    variables = run_apart(something_to_mend(live.server.url))
    program = f'shieldx() {{ "{sys.executable}" -m app "$@"; }}\n'

    run = subprocess.run(
        ["bash", "-c", "set -euxo pipefail\n" + program + "\n".join(lines("sh"))],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=SHELL_TIMEOUT_S, check=False,
        env=dict(os.environ) | live.server._environment | variables
        | {"URL": live.server.url, "KEY": ROOT_KEY, "SHIELDX_BACKUP_DIR": str(tmp_path / "backups")},
    )  # fmt: skip

    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    assert '"waiting_for":[]' in run.stdout
