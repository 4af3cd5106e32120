"""The OpenAPI document and what the server does, held together from both sides."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.main import make_app
from app.settings import Settings
from tests.credits.ledger_client import AUTHORIZED, Client
from tests.server import ROOT_KEY, ShieldxServer

# Valid by its schema, and refused all the same: a key that was used before, credits that are not there.
UNDECIDABLE = "positive_data_acceptance"
UNDOCUMENTED = {"/docs", "/openapi.json"}  # they describe the calls and are none
ENDLESS = "/ofrep/v1/sse"  # a stream, whose answers are never whole


def registered() -> set[tuple[str, str]]:
    """Return method and path of every route of the application."""
    app = make_app(Settings(root_key=ROOT_KEY), on_crash=lambda _: None)
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    return {(method, path) for method, path in routes if path != "/{rest}"}


async def documented(client: Client) -> set[tuple[str, str]]:
    """Return method and path of every operation of the document."""
    document = (await client.get("/openapi.json")).body
    methods = {"get", "put", "post", "delete", "patch", "head"}
    return {(method.upper(), path) for path, item in document["paths"].items() for method in item if method in methods}


async def test_every_route_is_documented_and_every_documented_call_is_routed(client: Client) -> None:
    routes = registered()

    calls = await documented(client)

    assert calls <= routes
    heads = {("HEAD", path) for method, path in routes if method == "GET"}
    assert {route for route in routes - calls - heads if route[1] not in UNDOCUMENTED} == set()


async def test_the_document_is_openapi_3_1_with_the_running_version(client: Client) -> None:
    document = (await client.get("/openapi.json")).body

    assert document["openapi"].startswith("3.1")
    version = re.search(
        r'^version = "(.+)"$', Path(__file__).parents[2].joinpath("pyproject.toml").read_text(), re.MULTILINE
    )
    assert version is not None
    assert document["info"]["version"] == version[1]


@pytest.mark.timeout(900)  # 40 s of processor time, which a busy machine may take long to give
def test_generated_requests_get_documented_answers(server: ShieldxServer, tmp_path: Path) -> None:
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json",
        "-H", f"Authorization: {AUTHORIZED['Authorization']}", "--seed", 1, "--no-color",
        "--phases", "coverage", "--checks", "all", "--exclude-checks", UNDECIDABLE, "--exclude-path", ENDLESS,
        "--request-timeout", 10, "--suppress-health-check", "all",
    ]  # fmt: skip

    run = subprocess.run(
        [str(word) for word in command], cwd=tmp_path, capture_output=True, text=True, timeout=840, check=False
    )

    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert tested is not None
    assert int(tested[1]) >= len(registered()) / 3


class Validated:
    """A client whose answers must match the document."""

    def __init__(self, client: Client) -> None:
        """Read the document."""
        import schemathesis  # noqa: PLC0415 - a second of imports, for the one process that runs these tests

        self.client = client
        self.schema: Any = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
        self.response_of: Any = schemathesis.Response

    async def check(self, method: str, template: str, body: Any = None, **names: str) -> Any:
        """Make a call, hold its answer against the document, and return the body."""
        path = template.format(**names)
        if method == "GET":
            reply = await self.client.get(path)
        else:
            reply = await self.client.post(path, body)
        operation = self.schema[template.partition("?")[0]][method]
        response = self.response_of(
            status_code=reply.status, headers={name.lower(): [value] for name, value in reply.headers.items()}, content=reply.raw,
            request=None, elapsed=0.1, verify=False,
        )  # fmt: skip
        operation.validate_response(response)
        return reply.body


@pytest.fixture(params=["one shard", "two shards"])
def validated(request: pytest.FixtureRequest, client: Client, wide: Client) -> Validated:
    return Validated(client if request.param == "one shard" else wide)


async def test_answers_about_money_have_the_documented_shape(validated: Validated) -> None:
    check, client = validated.check, validated.client
    tenants = [await client.tenant(1000, metadata={"a": 1}, quota={"limit": 5000, "period": "hour"}) for _ in range(8)]
    spent = await check(
        "POST", "/v1/credits/consume", {"tenant_id": tenants[0], "amount": 7, "description": "d", "metadata": {}}
    )
    hold = await check("POST", "/v1/credits/reserve", {"tenant_id": tenants[0], "amount": 7})
    await check("POST", "/v1/credits/refund", {"transaction_id": spent["transaction_id"]})
    await check("POST", "/v1/credits/reservations/{reservation_id}/commit", reservation_id=hold["reservation_id"])
    other = await check("POST", "/v1/credits/reserve", {"tenant_id": tenants[0], "amount": 7})
    await check("POST", "/v1/credits/reservations/{reservation_id}/abort", reservation_id=other["reservation_id"])
    await check(
        "POST", "/v1/credits/batch", {"operations": [{"op": "consume", "tenant_id": name, "amount": 1} for name in tenants]}
    )
    legs = [{"tenant_id": name, "amount": 1} for name in tenants[1:]]
    moved = await check("POST", "/v1/transactions", {"legs": [{"tenant_id": tenants[0], "amount": -7}, *legs]})

    for identifier in (moved["transaction_id"], spent["transaction_id"], hold["reservation_id"]):
        await check("GET", "/v1/transactions/{transaction_id}", transaction_id=identifier)
    await check("GET", "/v1/credits/reservations/{reservation_id}", reservation_id=hold["reservation_id"])
    for path in ("", "/transactions", "/reservations", "/usage", "/balance"):
        await check("GET", "/v1/accounts/{tenant_id}" + path, tenant_id=tenants[0])
    await check("GET", "/v1/accounts")
    await check("GET", "/v1/ledger/trial-balance")
    await check("GET", "/ready")
