"""Where the keys that sign checkpoints come from, and that a bad one is refused without being shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.audit.note import COSIGNATURE, Signer
from app.audit.signing_keys import SEEDS_MAX, SeedsRefused, parse_seeds, signers_of
from app.credits.opening import Signing
from app.main import checkpoint_seeds, named_witnesses
from app.settings import SettingRefused, Settings
from app.web.outgoing import Outgoing

ONE, TWO = bytes(range(32)), bytes(32)


def test_seeds_are_hex_newest_first() -> None:
    assert parse_seeds(ONE.hex()) == (ONE,)
    assert parse_seeds(f"{TWO.hex()}\n{ONE.hex().upper()}\n") == (TWO, ONE)
    assert parse_seeds(f" {TWO.hex()}, {ONE.hex()}") == (TWO, ONE)


@pytest.mark.parametrize(
    "text",
    ["", " ", ONE.hex()[:-1], ONE.hex() + "0", ONE.hex()[:-1] + "g", f"{ONE.hex()} {ONE.hex()}", "٠" * 64,
     " ".join(bytes([n] * 32).hex() for n in range(SEEDS_MAX + 1))],
)  # fmt: skip
def test_other_text_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(SeedsRefused) as refused:
        parse_seeds(text)

    assert ONE.hex()[:8] not in str(refused.value)


def test_every_log_has_keys_of_its_own_name() -> None:
    (here,), (there,) = (signers_of([ONE], f"shieldx/x/s0{number}") for number in (0, 1))

    assert (here.verifier.name, there.verifier.name) == ("shieldx/x/s00", "shieldx/x/s01")
    assert here.verifier.key_id != there.verifier.key_id
    assert here.verifier.public == there.verifier.public


def test_a_key_is_made_once_in_the_data_directory_and_is_private(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")

    first, again = checkpoint_seeds(settings), checkpoint_seeds(settings)

    file = tmp_path / "data" / "checkpoint.key"
    assert first == again
    assert len(first) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(f"{TWO.hex()}\n{file.read_text()}")
    assert checkpoint_seeds(settings) == (TWO, *first)


def test_a_variable_comes_before_a_file_and_both_before_the_data_directory(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{TWO.hex()}\n")

    assert checkpoint_seeds(Settings(checkpoint_keys=ONE.hex(), checkpoint_key_file=str(file))) == (ONE,)
    assert checkpoint_seeds(Settings(checkpoint_key_file=str(file), data_dir=tmp_path / "none")) == (TWO,)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"checkpoint_keys": "hunter2"}, "SHIELDX_CHECKPOINT_KEYS: "), ({"checkpoint_key_file": "hunter2"}, "SHIELDX_CHECKPOINT_KEY_FILE: "),
     ({"witnesses": "hunter2"}, "SHIELDX_WITNESSES: ")],
)  # fmt: skip
def test_a_bad_setting_is_named_and_not_shown(
    settings: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingRefused) as refused:
        (named_witnesses if "witnesses" in settings else checkpoint_seeds)(Settings(**settings))

    assert str(refused.value).startswith(named)
    assert "hunter2" not in str(refused.value)


def test_witnesses_are_those_of_the_setting() -> None:
    vkey = Signer("witness.example/w1", ONE, COSIGNATURE).verifier.vkey

    (witness,) = named_witnesses(Settings(witnesses=f"{vkey} https://witness.example"))

    assert (witness.verifier.vkey, witness.url) == (vkey, "https://witness.example")


def test_what_holds_seeds_shows_none() -> None:
    shown = repr(Signing((ONE,), (), Outgoing().post)) + repr(Settings(checkpoint_keys=ONE.hex())) + repr(Signer("log", ONE))

    assert ONE.hex() not in shown
    assert repr(ONE) not in shown
