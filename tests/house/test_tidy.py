"""The rules of the house, as tests: there is no check that only a machine elsewhere knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house.conftest import REPOSITORY, Tool

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
SLEEP_MAX_S = 0.05
DOERS = ("util", "helper", "manager", "engine", "handler", "service", "base", "enhanced")
# Words that name work which is not done. They are put together here so that this file is no hit itself.
UNDONE = [
    "TO" + "DO",
    "FIX" + "ME",
    "XX" + "X",
    "HA" + "CK",
    "for " + "now",
    "place" + "holder",
    "simpli" + "fied",
    "not " + "implemented",
]
TEXT_SUFFIXES = {".py", ".lua", ".sql", ".md", ".toml", ".yaml", ".yml", ".css", ".sh", ".json", ""}
LOCKS = {path.name for path in REPOSITORY.glob("requirements*.lock")}


@cache
def tracked() -> tuple[Path, ...]:
    """Return every file that is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for name in listed.stdout.splitlines() if (path := REPOSITORY / name).is_file())


def texts(*suffixes: str) -> list[Path]:
    """Return the files of these kinds; of all kinds of text by default."""
    wanted = set(suffixes) or TEXT_SUFFIXES
    return [path for path in tracked() if path.suffix in wanted and path.name not in LOCKS]


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a Python file, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """Return file:line of every line that matches."""
    found = re.compile(pattern, re.IGNORECASE)
    return [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if found.search(line)
    ]


def test_the_repository_is_seen() -> None:
    assert len(texts(".py")) > 50
    assert REPOSITORY / "app" / "actor.py" in tracked()


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for path in texts(".py"):
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{name(path)}:{node.lineno} {node.name} has {lines} lines")

    assert long == []


def test_no_file_is_too_long_to_read() -> None:
    long = [
        f"{name(path)} has {lines} lines"
        for path in texts(".py", ".lua", ".sql")
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    ]

    assert long == []


def test_nothing_is_named_for_a_doer() -> None:
    doers = re.compile(rf"(?<![a-z])({'|'.join(DOERS)})(s|es)?(?![a-z])", re.IGNORECASE)
    words = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
    found = []
    for path in texts(".py", ".lua", ".sql"):
        found += [name(path)] if doers.search(" ".join(words.findall(path.stem))) else []
        if path.suffix == ".py":
            for node in nodes_of(path):
                if isinstance(node, ast.ClassDef) and doers.search(" ".join(words.findall(node.name))):
                    found.append(f"{name(path)}:{node.lineno} class {node.name}")

    assert found == []


def test_nothing_is_left_to_do() -> None:
    pattern = "|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in UNDONE)

    assert lines_with(pattern, texts()) == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    words = "|".join(
        ["mark.sk" + "ip", "mark.xf" + "ail", r"pytest\.sk" + "ip", r"pytest\.xf" + "ail", r"importor" + "skip"]
    )

    assert lines_with(words, texts(".py")) == []


def test_no_file_names_a_path_or_a_tool_of_one_machine() -> None:
    places = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "bash_" + "jobs", r"C:\\" + "Users"]

    assert lines_with("|".join(places), texts()) == []


def test_no_file_holds_a_pictogram() -> None:
    assert lines_with("[\U0001f300-\U0001faff\u2600-\u27bf]", [path for path in texts() if "tests" not in path.parts]) == []


def test_no_line_ends_in_white_space_and_every_file_ends_in_a_newline() -> None:
    assert lines_with(r"[ \t]+$", [path for path in texts() if path.suffix != ".md"]) == []
    assert [name(path) for path in texts() if (text := path.read_text()) and not text.endswith("\n")] == []


def sleeps(function: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls of sleep in a function itself: not in its loops, nor in functions inside it."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.While | ast.For | ast.AsyncFor | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep"):
            yield node
        yield from sleeps(node)


def test_no_test_waits_for_a_fixed_time() -> None:
    """A wait stands in a loop that looks for something; what must not happen may be waited for, but not long."""
    found = []
    for path in texts(".py"):
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for call in sleeps(node):
                    seconds = call.args[0] if call.args else None
                    short = (
                        isinstance(seconds, ast.Constant)
                        and isinstance(seconds.value, int | float)
                        and seconds.value <= SLEEP_MAX_S
                    )
                    if not short:
                        found.append(f"{name(path)}:{call.lineno}")

    assert found == []


def public(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the classes and functions that others see: not those of private classes, nor those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def test_every_module_class_and_function_for_others_has_a_docstring() -> None:
    bare = []
    for path in texts(".py"):
        if "tests" not in path.parts:
            tree = nodes_of(path)[0]
            bare += [
                f"{name(path)}:{getattr(node, 'lineno', 1)}"
                for node in (tree, *public(tree))
                if not ast.get_docstring(node)  # type: ignore[arg-type]
            ]

    assert bare == []


@pytest.mark.parametrize("directory", ["app", "bench", "grafana", "k8s", "tests"])
def test_ruff_has_nothing_to_say(tool: Tool, directory: str) -> None:
    run = tool("ruff", "check", "--no-cache", directory)

    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.parametrize("directory", ["app", "bench", "grafana", "k8s", "tests"])
def test_every_file_is_formatted(tool: Tool, directory: str) -> None:
    run = tool("ruff", "format", "--no-cache", "--check", directory)

    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.timeout(900)  # 20 s of processor time, which a busy machine may take long to give
def test_types_agree(tool: Tool) -> None:
    run = tool("mypy")

    assert run.returncode == 0, run.stdout[-4000:]


def test_imports_go_down_only(tool: Tool) -> None:
    run = tool("lint-imports", "--no-cache")

    assert run.returncode == 0, run.stdout[-4000:]
