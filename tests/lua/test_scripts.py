"""What is true of every script file: its header, its place, and that a server takes it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
import redis

from app.credits.api import REFUSALS
from app.db.keys import shard_keys
from app.db.lua import load_script
from app.db.resources import resource_dir

ROOT = resource_dir("lua")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.lua"))
LEDGER_SCRIPTS = [name for name in SCRIPTS if name.startswith("ledger_")]
EXPERIMENT_SCRIPTS = [name for name in SCRIPTS if name.startswith("experiment_")]
LIST_SCRIPTS = ["rate_limit"]  # over as many keys as they are given
CHANGE_SCRIPTS = ["experiment_enrol", "registry_merge"]  # over fixed keys and as many changes as they are given
LIBRARIES = sorted(path.name for path in (ROOT / "lib").glob("*.lua"))
CODE_LINES_MAX = 100  # of one file, comments and blank lines left out
SECOND_KEYS = ("account:", "holds:", "reservation:", "refunds:", "idem:")


def parts(name: str) -> tuple[str, str]:
    """Return the header of a script and its whole code, includes expanded and comments removed."""
    own = (ROOT / f"{name}.lua").read_text()
    header = own[: re.search(r"^(?!--)", own, re.MULTILINE).start()]  # type: ignore[union-attr]
    code = "\n".join(line.partition("--")[0] for line in load_script(name).text.splitlines())
    return header, code


def numbers(kind: str, text: str) -> set[int]:
    """Return the numbers n of every KEYS[n] or ARGV[n]."""
    return {int(number) for number in re.findall(rf"{kind}\[(\d+)\]", text)}


@pytest.mark.parametrize("name", [*LEDGER_SCRIPTS, *EXPERIMENT_SCRIPTS, *CHANGE_SCRIPTS])
def test_the_header_names_exactly_the_keys_that_the_body_uses(name: str) -> None:
    header, code = parts(name)

    every_ledger_script_names = set(range(1, 1 + len(shard_keys(0)))) if name in LEDGER_SCRIPTS else set()
    assert numbers("KEYS", header) == numbers("KEYS", code) | every_ledger_script_names
    assert numbers("KEYS", code) <= numbers("KEYS", header)
    assert numbers("KEYS", code), "a script without keys cannot run in a cluster"


@pytest.mark.parametrize("name", sorted({*SCRIPTS} - {*LEDGER_SCRIPTS, *LIST_SCRIPTS, *CHANGE_SCRIPTS}))
def test_a_script_with_fixed_arguments_names_them_all(name: str) -> None:
    header, code = parts(name)

    assert numbers("ARGV", header) == numbers("ARGV", code)


@pytest.mark.parametrize("name", LIST_SCRIPTS)
def test_the_header_of_a_script_over_many_keys_says_so(name: str) -> None:
    header, code = parts(name)

    assert numbers("KEYS", header) == {1} | numbers("KEYS", code)
    assert "KEYS[1] ..." in header
    assert re.search(r"KEYS\[\w+ \+ \w+\]", code), "a script without keys cannot run in a cluster"


@pytest.mark.parametrize("name", [*LEDGER_SCRIPTS, *LIST_SCRIPTS, *CHANGE_SCRIPTS])
def test_the_header_names_exactly_the_arguments_that_the_body_uses(name: str) -> None:
    header, code = parts(name)
    loop = re.search(r"for i = (\d+), #ARGV", code)
    assert loop is not None
    rest = int(loop[1])

    declared = numbers("ARGV", header)
    used = numbers("ARGV", code)

    assert f"ARGV[{rest}] ..." in header
    assert declared == set(range(1, rest + 1))
    assert {number for number in declared if number < rest} <= used
    assert max(used, default=0) <= rest + 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_tells_what_it_returns_and_costs(name: str) -> None:
    header, _ = parts(name)

    assert header.startswith(f"-- {name}: ")
    assert "-- Returns " in header
    assert "-- Cost: O(" in header


def test_every_key_that_a_script_builds_is_described() -> None:
    header, code = parts("ledger_apply")
    restored = parts("ledger_restore")[1]

    built = set(re.findall(r"prefix \.\. '(\w+:)'", code + restored))

    assert built == set(SECOND_KEYS)
    assert all(f"{{s00}}:{key}<" in header for key in built)


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_is_included_by_a_script_and_says_what_it_is(name: str) -> None:
    assert any(f"-- include: lib/{name}\n" in (ROOT / f"{script}.lua").read_text() for script in SCRIPTS)
    assert (ROOT / "lib" / name).read_text().startswith("-- ")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.lua")), ids=lambda path: path.name)
def test_a_file_is_short(path: Any) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("--")]

    assert len(lines) <= CODE_LINES_MAX, f"{path.name} has {len(lines)} lines of code"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_include_is_left_unexpanded_and_the_name_is_the_digest(name: str) -> None:
    script = load_script(name)

    assert "-- include:" not in script.text
    assert script.sha == hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_server_takes_the_script_under_its_name(connection: redis.Redis, name: str) -> None:
    script = load_script(name)

    assert connection.script_load(script.text) in {script.sha, script.sha.encode()}


def test_every_refusal_of_the_scripts_has_a_status_and_a_text() -> None:
    _, code = parts("ledger_apply")

    codes = set(re.findall(r"""'\["(\w+)"[],]""", code)) - {"ok", "many", "replay", "reused", "unknown", "swept", "claimed"}
    codes = {one for one in codes if not one.endswith("_")} | {
        f"reservation_{end}" for end in ("committed", "aborted", "expired")
    }

    assert codes <= set(REFUSALS)
    from_postgres = {"no_transaction", "not_refundable", "transaction_stalled"}
    assert set(REFUSALS) - codes == from_postgres


def test_scripts_take_no_global_of_their_own() -> None:
    for name in SCRIPTS:
        _, code = parts(name)
        declared = set(re.findall(r"local function (\w+)", code)) | set(re.findall(r"local ([\w, ]+?) =", code))
        names = {one.strip() for group in declared for one in group.split(",")}
        assigned = set(re.findall(r"^([a-z_]+) = ", code, re.MULTILINE))
        functions = set(re.findall(r"^function ([a-z_]+)\(", code, re.MULTILINE))

        assert assigned - names == set()
        assert functions == set()


def test_no_local_hides_a_function() -> None:
    for name in SCRIPTS:
        _, code = parts(name)
        functions = set(re.findall(r"local function (\w+)", code))
        locals_ = {one.strip() for group in re.findall(r"local ([\w, ]+?) =", code) for one in group.split(",")}
        arguments = {one.strip() for group in re.findall(r"function [\w.]+\(([\w, ]*)\)", code) for one in group.split(",")}

        assert functions & (locals_ | arguments) == set()
