"""Secrets are shown nowhere, and are compared in constant time."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

import app
from app.access.table import KeyTable
from app.audit.entry import RowSeal
from app.credits.opening import Signing, Stores
from app.credits.payment import PaymentBody
from app.credits.request import Fingerprints
from app.db.founding import LedgerRow
from app.db.topology import make_topology
from app.privacy.envelope import DataKey, MasterKeys
from app.privacy.payment import Payment
from app.settings import Settings

APP = Path(app.__file__).parent
SECRET = "hunter2-and-more-of-it"
KEY = bytes(range(32))
SECRET_WORDS = re.compile(r"(^|_)(key|secret|token|signature|mac|digest|seal|password|commitment|hash)$")
# Hashes and ids that everybody may know; comparing them tells nothing.
PUBLIC = re.compile(r"prev_hash|head_hash|last_hash|fingerprint|checksum|key_id|_key_id|name|last_digest")


def values() -> list[object]:
    settings = Settings(
        root_key=SECRET, audit_key=SECRET, redis_url=f"redis://:{SECRET}@h", database_url=f"postgresql://u:{SECRET}@h/d",
        migrate_database_url=f"postgresql://u:{SECRET}@h/d",
    )  # fmt: skip
    return [
        settings, RowSeal(SECRET.encode()), Fingerprints(KEY), MasterKeys([KEY]), DataKey(bytes(16), KEY), KeyTable(SECRET),
        Signing((KEY,), (), print), Payment("4111111111111111", SECRET, "12/27"),
        PaymentBody("4111111111111111", "987", SECRET, "12/27"), LedgerRow(bytes(16), "origin", 1, KEY),
        Stores(
            make_topology(f"redis://:{SECRET}@h"), f"postgresql://u:{SECRET}@h/d", f"postgresql://u:{SECRET}@h/d", 6, 9, 1, KEY,
            "replica", 60,
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_no_secret_is_in_the_text_form_of_a_value(value: object) -> None:
    for shown in (repr(value), str(value), f"{value}", repr([value]), repr({"v": value})):
        for secret in (SECRET, KEY.hex(), repr(KEY)[2:-1], "4111111111111111", "987"):
            assert secret not in shown


def test_a_class_that_holds_a_secret_has_a_text_form_of_its_own() -> None:
    """A struct or tuple that names a secret field shows it in its repr, unless it says otherwise."""
    bare = []
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b).endswith(("Struct", "NamedTuple", "Input")) for b in node.bases
            ):
                names = [
                    field.target.id
                    for field in node.body
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                ]
                shows = any(isinstance(part, ast.FunctionDef) and part.name == "__repr__" for part in node.body)
                if not shows and {
                    "cvv",
                    "card_number",
                    "root_key",
                    "audit_key",
                    "secret",
                    "password",
                    "salt",
                    "master_key",
                } & set(names):
                    bare.append(f"{path.name}: {node.name}")

    assert bare == ["reads.py: PaymentShown"]  # which holds masks alone


def test_every_comparison_of_a_secret_takes_constant_time() -> None:
    found = []
    for path in (APP / "main.py", *(APP / "privacy").glob("*.py"), APP / "audit" / "entry.py", *(APP / "web").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = (node.left, *node.comparators)
                # What is compared with a constant of the source is no secret.
                for side in () if any(isinstance(side, ast.Constant) for side in sides) else sides:
                    name = ast.unparse(side).rpartition(".")[2]
                    if isinstance(side, ast.Name | ast.Attribute) and SECRET_WORDS.search(name) and not PUBLIC.search(name):
                        found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")

    assert found == []


def test_random_secrets_come_from_the_operating_system() -> None:
    for path in (APP / "privacy").glob("*.py"):
        assert not re.search(r"^(import random|from random)", path.read_text(), re.MULTILINE), path.name


def test_the_security_rules_of_the_linter_are_on_for_the_whole_application() -> None:
    lint = tomllib.loads((APP.parent / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    off = [rule for rule in lint["ignore"] if rule.startswith("S")]
    bare = [
        f"{path.name}: {line.strip()}"
        for path in APP.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"noqa: .*\bS[0-9]{3}\b", line) and not re.search(r"noqa: [A-Z0-9, ]+ - \w+", line)
    ]

    assert lint["select"] == ["ALL"]
    # Assertions state what must hold, and the programs that are started are ours: see the comments there.
    assert off == ["S101", "S603", "S607"]
    assert not [
        pattern
        for pattern, rules in lint["per-file-ignores"].items()
        if pattern.startswith("app") and any(r.startswith("S") for r in rules)
    ]
    assert bare == [], "a rule is waived without a reason"


def test_secret_settings_are_no_flags() -> None:
    from app.cli import _SECRET, _parser  # noqa: PLC0415

    text = _parser().format_help()
    secret = {field.name for field in msgspec.structs.fields(Settings) if field.name.endswith(("_key", "_url"))}

    assert secret <= _SECRET
    assert not [name for name in secret if f"--{name.replace('_', '-')}" in text]
    assert not dataclasses.is_dataclass(Settings)
