"""compose.yaml: right by the specification, and in agreement with the program and the configuration it mounts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from app.audit.signing_keys import parse_seeds
from app.main import checked_master_keys
from app.settings import SERVICES, read_settings, variable_of
from tests.guide import GUIDE, block
from tests.linters import run_linters
from tests.server import REPOSITORY

READER: Final = Path(__file__).with_name("read_compose.py")

# ${NAME}, ${NAME:-default} or ${NAME:?what to do}; nothing else of the language is used.
VARIABLE: Final = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, with variables replaced as Compose would."""

    def value(match: re.Match[str]) -> str:
        return match[3] if match[2] == "-" else f"{match[1].lower()}-given"

    text = VARIABLE.sub(value, (REPOSITORY / "compose.yaml").read_text())
    return dict(yaml.safe_load(text))


def test_the_specification_knows_every_key(compose: dict[str, Any]) -> None:
    assert run_linters(READER, given=json.dumps(compose)) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [({"readonly": True}, "readonly"), ({"stop_grace_period": "soon"}, "duration"), ({"secrets": ["unheard"]}, "unheard")],
)
def test_what_is_wrong_is_refused(compose: dict[str, Any], change: dict[str, Any], said: str) -> None:
    wrong = compose | {"services": compose["services"] | {"credits": compose["services"]["credits"] | change}}

    with pytest.raises(AssertionError, match=said):
        run_linters(READER, given=json.dumps(wrong))


@pytest.mark.parametrize("service", ["credits", "shadow", "migrate"])
def test_the_program_takes_every_variable(compose: dict[str, Any], service: str) -> None:
    given = {
        name: value if name not in {"SHIELDX_CHECKPOINT_KEYS", "SHIELDX_MASTER_KEYS"} else "0" * 64
        for name, value in compose["services"][service]["environment"].items()
    }
    known = {variable_of(name) for name in read_settings({}, {}).__struct_fields__}

    settings = read_settings({}, given)

    assert set(given) <= known
    assert settings.shutdown_delay_seconds + settings.shutdown_grace_seconds + 10 <= 60
    assert compose["services"][service]["stop_grace_period"] == "60s"


def test_credits_and_shadow_together_run_every_service(compose: dict[str, Any]) -> None:
    run = ",".join(compose["services"][name]["environment"]["SHIELDX_SERVICES"] for name in ("credits", "shadow"))

    assert sorted(run.split(",")) == sorted(SERVICES)


def test_every_file_that_is_mounted_is_there(compose: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])]

    assert [path for path in mounted if path.startswith("./") and not (REPOSITORY / path).exists()] == []
    assert {path for path in mounted if not path.startswith("./")} == set(compose["volumes"])


def test_nothing_is_open_to_other_machines(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_prometheus_finds_its_targets_by_the_names_of_the_services(compose: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((REPOSITORY / "grafana" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}

    for name in ("credits", "shadow"):
        assert jobs[name]["dns_sd_configs"][0]["names"] == [name]
        assert name in compose["services"]
        assert jobs[name]["authorization"]["credentials_file"] == "secrets/metrics_key"
    assert compose["services"]["prometheus"]["secrets"][0]["target"] == "/etc/prometheus/secrets/metrics_key"


def test_every_variable_that_must_be_given_is_made_by_the_guide() -> None:
    demanded = {match[1] for match in VARIABLE.finditer((REPOSITORY / "compose.yaml").read_text()) if match[2] == "?"}

    assert demanded
    assert [name for name in demanded if f"{name}=" not in GUIDE] == []


def test_the_secrets_that_the_guide_makes_are_ones_that_the_program_takes(tmp_path: Path) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", block("env")], cwd=tmp_path, check=True, timeout=30)

    file = tmp_path / ".env"
    made = dict(line.split("=", 1) for line in file.read_text().splitlines())
    settings = read_settings({}, {name: value for name, value in made.items() if name.startswith("SHIELDX_")})

    assert file.stat().st_mode & 0o077 == 0
    assert len(set(made.values())) == len(made)
    assert len(parse_seeds(settings.checkpoint_keys)) == 1
    assert checked_master_keys(settings)
