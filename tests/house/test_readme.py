"""What README.md promises: its commands are there, its table is whole, its tour works as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from app.cli import _parser
from app.settings import DESCRIPTIONS, Settings, variable_of
from tests.house.conftest import REPOSITORY
from tests.server import ShieldxServer

README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TOUR_TIMEOUT_S = 240


def blocks(text: str) -> list[str]:
    """Return the content of the sh blocks of a text."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def tour() -> str:
    """Return the commands between the marks of the tour."""
    marked = re.findall(r"<!-- tour -->\n(.*?)<!-- /tour -->", README, re.DOTALL)
    assert marked, "README.md has no part between <!-- tour --> and <!-- /tour -->"
    return "\n".join(block for part in marked for block in blocks(part))


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))

    named = set(re.findall(r"`?\bmake ([a-z]+)\b(?= |`|$|\n)", "\n".join(blocks(README)))) | set(
        re.findall(r"`make ([a-z]+)[^`]*`", README)
    )

    assert {"run", "test"} <= named
    assert named <= targets


def test_every_target_for_people_is_phony() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)

    assert phony is not None
    assert set(phony[1].split()) == set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_every_command_of_shieldx_that_is_named_exists() -> None:
    commands = next(action.choices for action in _parser()._actions if action.dest == "command")
    assert commands is not None

    named = set(re.findall(r"\bshieldx ([a-z]+)\b(?=[ `\n)])", "\n".join(blocks(README))))
    named |= set(re.findall(r"`(?:\.venv/bin/)?shieldx ([a-z]+)[^`]*`", README))

    assert {"key", "audit"} <= named
    assert named <= set(commands)


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_every_setting_stands_in_a_row_of_the_table(field: msgspec.structs.FieldInfo) -> None:
    rows = [line for line in README.splitlines() if line.startswith(f"| `{variable_of(field.name)}` ")]

    assert len(rows) == 1, f"README.md needs one table row with `{variable_of(field.name)}`: {DESCRIPTIONS[field.name]}"
    if isinstance(field.default, int):
        assert re.search(rf"\b{str(field.default).lower()}\b", rows[0].replace(",", "")), (
            f"the row does not name the default {field.default}"
        )


def test_no_variable_is_documented_that_is_not_read() -> None:
    named = set(re.findall(r"\bSHIELDX_[A-Z_]+\b", README))

    assert named <= {variable_of(field.name) for field in msgspec.structs.fields(Settings)}


def test_links_to_files_lead_somewhere() -> None:
    for document in REPOSITORY.glob("*.md"):
        links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())

        assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_tour_works_as_it_is_printed(embedded: ShieldxServer) -> None:
    commands = tour().replace("http://127.0.0.1:5004", embedded.url).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    assert embedded.url in commands
    calls = commands.count("curl ")
    assert calls >= 5
    strict = (
        'set -euo pipefail\ncurl() { command curl --fail "$@" || { echo "refused: $*" >&2; exit 1; }; echo " #called"; }\n'
    )

    run = subprocess.run(
        ["bash", "-c", strict.replace('echo " #called"', "echo called >&2") + commands],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=TOUR_TIMEOUT_S, check=False,
        env={**os.environ, "SHIELDX_DATA_DIR": str(embedded.log.parent / "data"), "SHIELDX_ROOT_KEY": "", "DATABASE_URL": ""},
    )  # fmt: skip

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stderr.count("called\n") == calls
