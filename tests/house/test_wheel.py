"""The wheel: what is installed from it finds its scripts and statements without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from app import __version__
from tests.house.conftest import REPOSITORY

TIMEOUT_S = 120
PROBE = """
from pathlib import Path
import app
from app.db.lua import load_script
from app.db.resources import resource_dir
from app.db.sql import query
assert Path(app.__file__).is_relative_to({target!r}), app.__file__
for kind in ("lua", "sql"):
    assert resource_dir(kind).is_relative_to({target!r}), resource_dir(kind)
print(load_script("ledger_apply").sha, len(query("accounts_of")), app.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    directory = tmp_path_factory.mktemp("dist")
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return next(directory.glob("*.whl"))


def test_the_wheel_is_named_for_the_version(wheel: Path) -> None:
    assert wheel.name == f"shieldx-{__version__}-py3-none-any.whl"


@pytest.mark.parametrize("kind", ["lua", "sql"])
def test_the_wheel_holds_every_script_and_statement(wheel: Path, kind: str) -> None:
    held = zipfile.ZipFile(wheel).namelist()

    sources = [str(path.relative_to(REPOSITORY / kind)) for path in (REPOSITORY / kind).rglob("*") if path.is_file()]

    assert sources
    assert {f"app/_{kind}/{source}" for source in sources} <= set(held)


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel).namelist()

    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "app").rglob("*.py")}
    assert modules <= set(held)
    assert {name.split("/")[0] for name in held} == {"app", f"shieldx-{__version__}.dist-info"}


def test_what_is_installed_from_the_wheel_finds_its_files(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True, timeout=TIMEOUT_S, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip

    run = subprocess.run(
        [sys.executable, "-c", PROBE.format(target=str(target))], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == __version__
    command = (target / "bin" / "shieldx").read_text()
    assert "from app.cli import main" in command
