"""Traces of a whole server in this process, as OpenTelemetry's exporters get them."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple, cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.audit.shard import Shard
from app.credits.ledger import Ledger
from app.credits.traced import TracedLedger
from app.db.redis import GIVE_UP_S
from app.main import make_app, wait_open
from app.otel import TRACES_PER_S_MAX, OtelTraces, open_traces
from app.settings import SettingRefused, Settings
from app.web.connections import ConnectionLimits, EdgeRunner
from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import LedgerHouse
from tests.server import MASTER_KEY, REPOSITORY, ROOT_KEY

pytestmark = pytest.mark.asyncio(loop_scope="module")
CARD: Final = "4111 1111 1111 1111"
DEADLINE_S: Final = 30.0
IMPORT_TIMEOUT_S: Final = 60


class Traced(NamedTuple):
    """Calls of a server that traces what says so, and the spans that it made."""

    client: Client
    exporter: InMemorySpanExporter

    async def tree(self, trace_id: str) -> dict[str, ReadableSpan]:
        """Return the spans of a trace by name, once the request's own is among them."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                spans = {
                    one.name: one for one in self.exporter.get_finished_spans() if f"{one.context.trace_id:032x}" == trace_id
                }
                if any(one.kind is SpanKind.SERVER for one in spans.values()):
                    return spans
                await asyncio.sleep(0.005)


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


def wanted(*, sampled: bool = True) -> tuple[str, str]:
    """Return a new trace id and the `traceparent` of a caller that has it, and says whether it is recorded."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-00f067aa0ba902b7-0{int(sampled)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(house: LedgerHouse) -> AsyncIterator[Traced]:
    ledger = await house.make_ledger()
    exporter = InMemorySpanExporter()
    settings = Settings(
        redis_url=ledger.redis_url, database_url=ledger.database_url, root_key=ROOT_KEY, master_keys=MASTER_KEY,
        checkpoint_keys=MASTER_KEY, services=("credits",),
    )  # fmt: skip
    faults: list[BaseException] = []
    app = make_app(settings, faults.append, OtelTraces(SimpleSpanProcessor(exporter), 0.0, "test", clock_s=lambda: 0.0))
    runner = EdgeRunner(app, ConnectionLimits())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        await asyncio.wait_for(wait_open(app), DEADLINE_S)
        yield Traced(Client(session, f"http://127.0.0.1:{runner.addresses[0][1]}"), exporter)
    await runner.cleanup()
    assert faults == []


async def test_a_request_is_one_tree_over_mailbox_lua_and_commit(serving: Traced) -> None:
    tenant = await serving.client.tenant(100)
    trace_id, parent = wanted()

    spent = await serving.client.post(
        "/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, traceparent=parent, tracestate="vendor=x"
    )

    assert spent.status == 200
    tree = await serving.tree(trace_id)
    assert set(tree) == {"POST /v1/credits/consume", "mailbox wait", "redis apply", "commit", "postgres append"}
    whole, wait, apply, commit, append = (
        tree[name] for name in ("POST /v1/credits/consume", "mailbox wait", "redis apply", "commit", "postgres append")
    )
    assert f"{parent_of(whole):016x}" == "00f067aa0ba902b7"
    assert whole.context.trace_state.get("vendor") == "x"
    assert dict(whole.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/v1/credits/consume", "http.response.status_code": 200
    }  # fmt: skip
    assert [parent_of(one) for one in (wait, apply, commit)] == [whole.context.span_id] * 3
    assert parent_of(append) == commit.context.span_id
    assert dict(apply.attributes or {}) == {"shieldx.shard": 0, "shieldx.operations": 1}
    assert dict(append.attributes or {}) == {"shieldx.shard": 0, "shieldx.entries": 1}
    moments = [
        whole.start_time, wait.start_time, wait.end_time, apply.start_time, apply.end_time, commit.start_time,
        append.start_time, append.end_time, commit.end_time, whole.end_time,
    ]  # fmt: skip
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    assert (wait.end_time, apply.end_time) == (apply.start_time, commit.start_time)
    assert serving.exporter.get_finished_spans()[0].resource.attributes["service.name"] == "shieldx"


@pytest.mark.parametrize("kind", [Ledger, TracedLedger])
async def test_a_shard_that_was_closed_for_a_second_refuses_at_once(kind: type[Ledger]) -> None:
    shard, parts = Shard(0, "shieldx/test/s00"), cast("Any", None)
    shard.closed_at_s = time.monotonic() - GIVE_UP_S
    ledger = kind(shard, parts, parts, parts, parts)

    with pytest.raises(ConnectionError, match="waiting for Postgres"):
        ledger.submit([{"op": "sweep", "limit": 1}])
    with pytest.raises(ConnectionError, match="waiting for Postgres"):
        ledger.submit_one({"op": "sweep", "limit": 1}, lambda _value, _error: None)


async def test_requests_that_share_a_batch_each_have_its_times(serving: Traced) -> None:
    tenant = await serving.client.tenant(100)
    traces = [wanted() for _ in range(30)]

    replies = await asyncio.gather(*(
        serving.client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, traceparent=parent)
        for _, parent in traces
    ))  # fmt: skip

    assert {reply.status for reply in replies} == {200}
    trees = [await serving.tree(trace_id) for trace_id, _ in traces]
    assert {len(tree) for tree in trees} == {5}
    batches: dict[tuple[Any, Any], int] = {}
    sizes: dict[tuple[Any, Any], Any] = {}
    for tree in trees:
        apply = tree["redis apply"]
        batch = (apply.start_time, apply.end_time)
        batches[batch] = batches.get(batch, 0) + 1
        sizes[batch] = (apply.attributes or {})["shieldx.operations"]
    assert len(batches) < len(trees)
    # A sweep of what has expired may be in a batch too.
    assert all(0 <= sizes[batch] - count <= 1 for batch, count in batches.items())


async def test_spans_name_nothing_that_a_caller_chose(serving: Traced) -> None:
    client = serving.client
    trace_id, parent = wanted()
    chosen = {"tenant": await client.tenant(), "key": fresh("key"), "request": fresh("request"), "words": fresh("words")}
    body = {
        "tenant_id": chosen["tenant"], "amount": 5, "description": chosen["words"],
        "payment": {"card_number": CARD, "cvv": "123", "cardholder_name": "Jane Roe"},
    }  # fmt: skip

    paid = await client.post(
        "/v1/credits/topup", body, key=chosen["key"], traceparent=parent, X_Request_ID=chosen["request"]
    )
    second, other_parent = wanted()
    await client.call("GET", f"/v1/accounts/{chosen['tenant']}?x={chosen['words']}", traceparent=other_parent)

    assert paid.status == 200
    told = "".join(
        one.to_json() for tree in (await serving.tree(trace_id), await serving.tree(second)) for one in tree.values()
    )
    assert "/v1/accounts/{tenant_id}" in told
    secret = [*chosen.values(), CARD, CARD.replace(" ", ""), "Jane Roe", ROOT_KEY, paid.body["transaction_id"]]
    assert [word for word in secret if word in told] == []


async def test_only_requests_that_are_to_be_traced_are(serving: Traced) -> None:
    client = serving.client
    tenant = await client.tenant(10)
    path, body = "/v1/credits/consume", {"tenant_id": tenant, "amount": 1}
    serving.exporter.clear()

    for parent in (None, wanted(sampled=False)[1], "00-zz-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01"):
        assert (await client.post(path, body, traceparent=parent)).status == 200
    refused, asked = wanted()
    assert (await client.post(path, body | {"amount": 99}, traceparent=asked)).status == 402

    tree = await serving.tree(refused)
    assert set(tree) == {f"POST {path}", "mailbox wait", "redis apply", "commit"}
    assert {f"{one.context.trace_id:032x}" for one in serving.exporter.get_finished_spans()} == {refused}


async def test_a_ratio_of_requests_is_traced_but_no_more_than_the_bound() -> None:
    draws = iter([0.24, 0.25, 0.9, *[0.0] * 1_000])
    now_s = 5.0
    traces = OtelTraces(
        SimpleSpanProcessor(InMemorySpanExporter()), 0.25, "test", draw_01=lambda: next(draws), clock_s=lambda: now_s
    )

    first = [traces.begin({}) is not None for _ in range(3)]
    rest = sum(traces.begin({}) is not None for _ in range(500))
    now_s += 1.0

    assert first == [True, False, False]
    assert (rest + 1, traces.left_out) == (TRACES_PER_S_MAX, 501 - TRACES_PER_S_MAX)
    assert traces.begin({}) is not None


async def test_a_collector_gets_them_by_otlp_over_http() -> None:
    bodies: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    traces = open_traces(Settings(traces_url=url, traces_ratio=1.0, replica_name="one"))
    assert traces is not None
    trace = traces.begin({})
    assert trace is not None

    trace.note("redis apply", trace.started_ns, trace.started_ns + 1_000, {"shard": 3}, failed=True)
    traces.end(trace, "POST", "/v1/credits/consume", 503, trace.started_ns + 2_000)
    await traces.close()
    await runner.cleanup()

    (resource,) = ExportTraceServiceRequest.FromString(b"".join(bodies)).resource_spans
    spans = {span.name: span for span in resource.scope_spans[0].spans}
    assert set(spans) == {"POST /v1/credits/consume", "redis apply"}
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.instance.id"] == "one"
    assert {span.status.code for span in spans.values()} == {StatusCode.ERROR.value}
    assert spans["redis apply"].end_time_unix_nano - spans["redis apply"].start_time_unix_nano == 1_000


async def test_without_the_extra_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)

    with pytest.raises(SettingRefused, match=r"SHIELDX_TRACES_URL.*shieldx\[otel\]"):
        open_traces(Settings(traces_url="http://127.0.0.1:4318/v1/traces"))


async def test_without_the_setting_nothing_that_traces_is_loaded() -> None:
    code = (
        "import sys; from app.main import make_app; from app.settings import Settings\n"
        "app = make_app(Settings(root_key='k' * 16), lambda _: None)\n"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))]"
    )

    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=IMPORT_TIMEOUT_S, check=True)
