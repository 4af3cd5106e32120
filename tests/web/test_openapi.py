"""The document and the page say what the server does."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from web_sample import ROUTES, SPEND

from app.web.connections import EdgeRunner
from app.web.docs import policy, reference_routes, render
from app.web.openapi import openapi
from app.web.problems import TITLES, Problem, problem_body
from app.web.routes import Route, add_routes

DOCUMENT = json.loads(json.dumps(openapi(ROUTES, title="sample", version="1.2.3")))


def as_python(schema: Any) -> Any:
    """A schema whose patterns mean to Python what they mean to ECMA 262: there `$` is the very end."""
    if isinstance(schema, dict):
        return {
            key: re.sub(r"\$\Z", r"\\Z", value) if key == "pattern" and isinstance(value, str) else as_python(value)
            for key, value in schema.items()
        }
    return [as_python(item) for item in schema] if isinstance(schema, list) else schema


def schema_of(name: str) -> dict[str, Any]:
    """A component as a schema that stands alone."""
    return {"$ref": f"#/components/schemas/{name}", "components": as_python(DOCUMENT["components"])}


def operation(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}

    assert described == {(route.method, route.path) for route in ROUTES}


def test_open_route_needs_no_key_and_every_other_one_names_401() -> None:
    assert operation("get", "/health")["security"] == []
    assert "401" not in operation("get", "/health")["responses"]
    assert "401" in operation("get", "/v1/accounts/{tenant_id}")["responses"]
    assert "403" in operation("delete", "/v1/fail/{how}")["responses"]


def test_money_route_needs_a_key_and_lists_its_problems() -> None:
    spend = operation("post", "/v1/spend")
    codes = spend["responses"]["402"]["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["code"]

    assert {"$ref": "#/components/parameters/Idempotency-Key"} in spend["parameters"]
    assert codes == {"enum": ["insufficient_credits"]}
    assert {"ETag", "Idempotent-Replayed", "X-Request-ID"} == set(spend["responses"]["200"]["headers"])


def test_no_python_only_pattern_is_in_the_document() -> None:
    assert r"\Z" not in json.dumps(DOCUMENT).replace("\\\\", "\\")


def test_every_reference_of_the_document_resolves() -> None:
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))):
        target: Any = DOCUMENT
        for step in reference.split("/"):
            target = target[step]


def test_two_routes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        openapi([ROUTES[0], ROUTES[0]], title="sample", version="1")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(alphabet='aA0._:-\0\n"é ', max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "\0", "b"]), inner, max_size=2),
    max_leaves=5,
)
spends = st.fixed_dictionaries(
    {
        "tenant_id": st.sampled_from(["t1", "a" * 64, "a" * 65, "", "é", "a\n", 1]),
        "amount": st.sampled_from([1, 0, 10**14, 5, True]),
    },
    optional={
        "description": st.sampled_from(["", "x", "x" * 501, "\0", None]),
        "metadata": values,
        "other": values,
    },
)


@given(spends)
def test_schema_takes_exactly_the_bodies_that_the_server_takes(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()

    try:
        SPEND.decode(data)
        taken = True
    except Problem:
        taken = False

    assert jsonschema.Draft202012Validator(schema_of("Spend")).is_valid(value) == taken


def test_problem_matches_its_schema() -> None:
    body = json.loads(problem_body(Problem(402, "insufficient_credits", "No.", available=5), "r1"))

    jsonschema.Draft202012Validator(schema_of("Problem")).validate(body)


def test_every_title_is_one_short_sentence() -> None:
    assert [code for code, title in TITLES.items() if len(title) > 60 or title.endswith(".") or not title] == []


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a server that serves the reference of the sample routes."""
    app = web.Application()
    add_routes(app, reference_routes(ROUTES, title="sample", version="1.2.3", description="Some `code` <here>."))
    runner = EdgeRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}") as client:
        yield client
    await runner.cleanup()


async def test_reference_is_served_with_a_strict_policy(session: aiohttp.ClientSession) -> None:
    async with session.get("/docs") as answer:
        page = await answer.text()

    assert answer.status == 200
    assert answer.content_type == "text/html"
    assert answer.headers["Content-Security-Policy"] == policy()
    assert "'unsafe" not in policy()
    assert not re.search(r"<script|src=|style=|onclick|http://|https://", page)
    assert "Some <code>code</code> &lt;here&gt;." in page


async def test_document_describes_the_reference_itself(session: aiohttp.ClientSession) -> None:
    async with session.get("/openapi.json") as answer:
        document = await answer.json()

    assert document["info"] == {"title": "sample", "version": "1.2.3", "description": "Some `code` <here>."}
    assert {"/docs", "/openapi.json", "/v1/spend"} <= set(document["paths"])


def test_page_holds_every_call_its_limits_and_an_example() -> None:
    page = render(DOCUMENT)

    for route in ROUTES:
        assert f"</span> {route.path}</h3>" in page
    assert "99999999999999" in page
    assert "insufficient_credits" in page
    assert "curl -X POST" in page
    assert "&#x27;{&quot;tenant_id&quot;: &quot;acme&quot;, &quot;amount&quot;: 5}&#x27;" in page


def test_text_of_a_route_is_escaped() -> None:
    route = Route("GET", "/x", ROUTES[0].handler, "<b>bold</b>", "<i>tag</i>", description="<script>")

    page = render(openapi([route], title="<t>", version="1"))

    assert not re.search(r"<b>|<i>|<script>|<t>", page)
