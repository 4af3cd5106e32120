"""The locator over HTTP, on a whole server: what is answered, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import aiohttp
import orjson
import pytest

from tests.credits.ledger_client import AUTHORIZED, Client, Reply, fresh
from tests.server import ShieldxServer

PLAIN: dict[str, Any] = {"host": "10.0.0.1", "port": 8080}


async def put(client: Client, service: str, id_: str = "a", **fields: Any) -> Reply:
    return await client.call("PUT", f"/v1/services/{service}/instances/{id_}", PLAIN | fields)


async def test_an_instance_is_registered_found_reported_drained_and_gone(client: Client) -> None:
    service = fresh("web")
    made = await put(client, service, tags=["v1", "v1"], metadata={"team": "pay"}, zone="z1")
    again = await put(client, service, tags=["v1"], metadata={"team": "pay"}, zone="z1")

    found = (await client.get(f"/v1/services/{service}/lookup?tag=v1&zone=z1")).body
    report = {"lease_id": found["lease_id"], "ok": True, "latency_ms": 4.5}
    reported = [(await client.post(f"/v1/services/{service}/report", report)).body["result"] for _ in range(2)]
    listed = (await client.get(f"/v1/services/{service}")).body
    await client.done(f"/v1/services/{service}/instances/a/drain")
    drained = await client.get(f"/v1/services/{service}/lookup")
    gone = await client.call("DELETE", f"/v1/services/{service}/instances/a")

    assert (made.status, again.status) == (201, 200)
    assert made.body["generation"] == again.body["generation"]
    assert (found["instance"]["id"], found["instance"]["tags"], found["panic"]) == ("a", ["v1"], False)
    assert reported == ["counted", "repeated"]
    load = listed["data"][0]["load"]
    assert load == {"in_flight": 0, "latency_ms": pytest.approx(4.5, abs=0.5), "picks": 1, "reports": 1, "failures": 0}
    assert drained.refusal == (503, "no_instance")
    assert drained.headers["Retry-After"] == "1"
    assert gone.status == 204
    assert (await client.post(f"/v1/services/{service}/instances/a/heartbeat")).refusal == (404, "unknown_instance")


async def test_an_old_start_of_an_instance_can_neither_speak_nor_end_the_new_one(client: Client) -> None:
    service = fresh("web")
    await put(client, service, generation="boot-1")
    await put(client, service, generation="boot-2")
    path = f"/v1/services/{service}/instances/a"

    assert (await client.post(f"{path}/heartbeat", {"generation": "boot-1"})).refusal == (409, "stale_generation")
    for word in ("drain", "resume", "isolate", "reset"):
        assert (await client.post(f"{path}/{word}", {"generation": "boot-1"})).refusal == (409, "stale_generation"), word
    assert (await client.call("DELETE", f"{path}?generation=boot-1")).refusal == (409, "stale_generation")
    assert (await put(client, service, generation="boot-1")).refusal == (409, "stale_generation")
    assert (await client.post(f"{path}/heartbeat", {"generation": "boot-2"})).status == 200


async def test_lists_are_filtered_and_paged(client: Client) -> None:
    service = fresh("web")
    for number in range(5):
        await put(client, service, f"i{number}", zone=f"z{number % 2}", tags=["odd"] if number % 2 else [])
    await client.done(f"/v1/services/{service}/instances/i1/drain")

    async def ids(query: str) -> list[str]:
        return [one["id"] for one in (await client.get(f"/v1/services/{service}?{query}")).body["data"]]

    assert await ids("zone=z1") == ["i1", "i3"]
    assert await ids("tag=odd&healthy=true") == ["i3"]
    assert await ids("healthy=false") == ["i1"]
    page = (await client.get(f"/v1/services/{service}?limit=3")).body
    assert await ids(f"limit=3&cursor={page['next_cursor']}") == ["i3", "i4"]
    summary = next(one for one in (await client.get("/v1/services?limit=1000")).body["data"] if one["service"] == service)
    assert (summary["instances"], summary["up"], summary["tags"]) == (5, 4, ["odd"])


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"port": 0}, "/port"), ({"port": 65_536}, "/port"), ({"port": "80"}, "/port"), ({"port": 80.5}, "/port"),
        ({"host": ""}, "/host"), ({"host": "a b"}, "/host"), ({"host": "[::1]"}, "/host"), ({"host": "fe80::1%eth0"}, "/host"),
        ({"host": "0x7f.1"}, "/host"), ({"host": "127.1"}, "/host"), ({"host": "0.0.0.0"}, "/host"),
        ({"host": "224.0.0.1"}, "/host"), ({"host": "::ffff:0.0.0.0"}, "/host"), ({"host": "::ffff:224.0.0.1"}, "/host"),
        ({"host": "169.254.169.254", "check": {"http": "/"}}, "/check"),
        ({"host": "::ffff:7f00:1", "check": {"tcp": "[::ffff:127.0.0.1]:80"}}, "/check"),
        ({"host": "a" * 254}, "/host"), ({"host": "http://x"}, "/host"),
        ({"weight": -1}, "/weight"), ({"weight": 65_536}, "/weight"), ({"zone": "a b"}, "/zone"),
        ({"tags": ["x"] * 65}, "/tags"), ({"tags": ["a,b"]}, "/tags/0"), ({"tags": ["x" * 129]}, "/tags/0"),
        ({"metadata": {"k": "v" * 1_025}}, "/metadata"), ({"metadata": {"1k": "v"}}, "/metadata"),
        ({"metadata": {f"k{number}": "v" * 200 for number in range(40)}}, "/metadata"),
        ({"metadata": {"k": 1}}, "/metadata"), ({"ttl_seconds": 4}, "/ttl_seconds"), ({"ttl_seconds": 0}, "/ttl_seconds"),
        ({"ttl_seconds": 86_401}, "/ttl_seconds"), ({"check": {}}, "/check"), ({"generation": "a/b"}, "/generation"),
        ({"check": {"http": "/a", "tcp": "10.0.0.1:1"}}, "/check"), ({"check": {"http": "http://10.0.0.2/"}}, "/check"),
        ({"check": {"http": "file:///etc/passwd"}}, "/check"), ({"check": {"tcp": "169.254.169.254:80"}}, "/check"),
        ({"check": {"http": "/", "interval_seconds": 0}}, "/check/interval_seconds"), ({"colour": "red"}, "/colour"),
    ],
    ids=str,
)  # fmt: skip
async def test_a_registration_with_a_wrong_field_is_refused_where_it_is_wrong(
    client: Client, fields: dict[str, Any], pointer: str
) -> None:
    service = fresh("web")

    reply = await put(client, service, **fields)

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"].startswith(pointer)
    assert (await client.get(f"/v1/services/{service}")).refusal == (404, "no_service")


async def test_a_check_of_an_address_that_is_closed_is_refused_and_one_of_a_name_is_judged_later(client: Client) -> None:
    service = fresh("web")
    to_consul = {"Name": service, "ID": service, "Address": "127.0.0.1", "Port": 1, "Check": {"TCP": "127.0.0.1:1"}}

    refused = await client.call("PUT", "/v1/agent/service/register", to_consul)
    own = await put(client, service, host="169.254.169.254", check={"http": "/"})

    assert refused.refusal == own.refusal == (422, "invalid_request")
    assert "SHIELDX_CHECK_NETWORKS" in own.body["errors"][0]["detail"]
    assert (await client.get(f"/v1/services/{service}")).refusal == (404, "no_service")
    assert (await put(client, service, host="localhost", check={"http": "/"})).status == 201
    assert (await put(client, service, "b", host="127.0.0.1")).status == 201


@pytest.mark.parametrize("host", ["10.0.0.1", "2001:db8::7", "db-1.internal", "x", "EXAMPLE.com"])
async def test_hosts_may_be_names_and_addresses(client: Client, host: str) -> None:
    service = fresh("web")

    assert (await put(client, service, host=host)).status == 201
    targets = (await client.get(f"/v1/sd/prometheus?service={service}")).body[0]["targets"]
    assert targets == [f"[{host}]:8080" if ":" in host else f"{host}:8080"]


@pytest.mark.parametrize(
    ("method", "path", "body", "refusal"),
    [
        ("GET", "/lookup?strategy=fastest", None, (422, "invalid_request")),
        ("GET", "/lookup?strategy=consistent_hash", None, (422, "invalid_request")),
        ("GET", "/lookup?tag=a&tag=b", None, (422, "invalid_request")),
        ("GET", "/lookup?colour=red", None, (422, "invalid_request")),
        ("POST", "/report", {"lease_id": "deadbeef-1.00000000", "ok": True}, (404, "unknown_lease")),
        ("POST", "/report", {"lease_id": "x", "ok": "yes"}, (422, "invalid_request")),
        ("POST", "/report", {"lease_id": "x", "ok": True, "latency_ms": -1}, (422, "invalid_request")),
        ("POST", "/report", {"lease_id": "a b", "ok": True}, (422, "invalid_request")),
        ("GET", "/watch?index=-1", None, (422, "invalid_request")),
        ("GET", "/watch?wait=0", None, (422, "invalid_request")),
        ("GET", "/watch?wait=601", None, (422, "invalid_request")),
        ("POST", "/instances/none/drain", None, (404, "unknown_instance")),
        ("DELETE", "/instances/none", None, (404, "unknown_instance")),
        ("GET", "/instances/none", None, (404, "unknown_instance")),
    ],
    ids=str,
)  # fmt: skip
async def test_calls_that_make_no_sense_are_refused(
    client: Client, method: str, path: str, body: Any, refusal: tuple[int, str]
) -> None:
    service = fresh("web")
    await put(client, service)

    assert (await client.call(method, f"/v1/services/{service}{path}", body)).refusal == refusal


async def test_a_blocking_query_answers_when_something_changes(client: Client) -> None:
    service = fresh("web")
    await put(client, service)
    index = (await client.get(f"/v1/services/{service}/watch")).body["index"]

    waiting = asyncio.create_task(client.get(f"/v1/services/{service}/watch?index={index}&wait=30"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await put(client, service, "b")
    changed = (await waiting).body

    assert changed["index"] > index
    assert [one["id"] for one in changed["instances"]] == ["a", "b"]
    assert (await client.get(f"/v1/services/{service}/watch?index={changed['index'] + 9}&wait=30")).body == changed


class Events:
    """The events of a stream, one after the other."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        """Read from an answer."""
        self._answer = answer

    async def next(self) -> dict[str, Any]:
        """Return the next event: id, event, data."""
        fields: dict[str, Any] = {}
        async with asyncio.timeout(10):
            async for line in self._answer.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if not name and "data" in fields:
                    return fields | {"data": json.loads(fields["data"])}
                if name in {"id", "event", "data"}:
                    fields[name] = value
        raise AssertionError("the stream has ended")


async def test_a_stream_tells_changes_and_goes_on_where_it_was_left(client: Client) -> None:
    service = fresh("web")
    await put(client, service)
    path = f"{client.url}/v1/services/{service}/watch"
    headers = {**AUTHORIZED, "Accept": "text/event-stream"}

    async with client.session.get(path, headers=headers) as answer:
        events = Events(answer)
        first = await events.next()
        await put(client, service, "b")
        second = await events.next()
    await client.call("DELETE", f"/v1/services/{service}/instances/a")
    await put(client, service, "c")
    async with client.session.get(path, headers=headers | {"Last-Event-ID": second["id"]}) as answer:
        third = await Events(answer).next()
    async with client.session.get(path, headers=headers | {"Last-Event-ID": "1"}) as answer:
        unknown = await Events(answer).next()

    assert (first["event"], [one["id"] for one in first["data"]["instances"]]) == ("snapshot", ["a"])
    assert (second["event"], [one["id"] for one in second["data"]["put"]]) == ("change", ["b"])
    assert ([one["id"] for one in third["data"]["put"]], third["data"]["removed"]) == (["c"], ["a"])
    assert unknown["event"] == "snapshot"


async def test_watchers_that_do_not_read_slow_nobody_down(client: Client, server: ShieldxServer) -> None:
    service = fresh("web")
    tags = [f"{number:03d}" + "x" * 50 for number in range(60)]
    await put(client, service, tags=tags)
    request = (
        f"GET /v1/services/{service}/watch HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        f"Authorization: {AUTHORIZED['Authorization']}\r\n\r\n"
    ).encode()
    deaf = []
    for _ in range(20):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        one.sendall(request)
        deaf.append(one)

    taken_s = []
    for number in range(60):
        await put(client, service, f"i{number}", tags=tags)
        began_s = time.perf_counter()
        assert (await client.get(f"/v1/services/{service}/lookup")).status == 200
        taken_s.append(time.perf_counter() - began_s)

    for one in deaf:
        one.close()
    assert sorted(taken_s)[30] < 0.05


@pytest.mark.parametrize(
    ("path", "accept"),
    [("services/{}/watch?index={}&wait=60", "*/*"), ("services/{}/watch", "text/event-stream"),
     ("health/service/{}?index={}&wait=60s", "*/*")],
)  # fmt: skip
async def test_a_watcher_that_leaves_gives_its_place_back_at_once(
    client: Client, server: ShieldxServer, path: str, accept: str
) -> None:
    service = fresh("web")
    await put(client, service)
    index = (await client.get(f"/v1/services/{service}/watch")).body["index"]
    request = f"GET /v1/{path.format(service, index)} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n"
    request += f"Authorization: {AUTHORIZED['Authorization']}\r\n\r\n"
    before = await watchers(client)

    leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    for one in leaving:
        one.sendall(request.encode())
    await until_watchers(client, before + 3)
    for one in leaving:
        one.close()

    await until_watchers(client, before)


async def watchers(client: Client) -> int:
    lines = (await client.get("/metrics")).raw.decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("shieldx_locator_watchers "))))


async def until_watchers(client: Client, count: int) -> None:
    deadline_s = time.monotonic() + 5.0
    while await watchers(client) != count:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


async def test_prometheus_gets_one_group_for_each_instance_with_text_labels(client: Client) -> None:
    service = fresh("web")
    await put(client, service, tags=["v1", "blue"], metadata={"a.b": "ü"}, zone="z1")

    reply = await client.get(f"/v1/sd/prometheus?service={service}")

    assert reply.headers["Content-Type"] == "application/json"
    labels = reply.body[0]["labels"]
    assert labels["__meta_locator_tags"] == ",v1,blue,"
    assert labels["__meta_locator_metadata_a_b"] == "ü"
    assert all(isinstance(value, str) for value in labels.values())
    assert (await client.get("/v1/sd/prometheus?service=nobody-has-this")).body == []


async def test_bad_input_for_consuls_calls_is_refused(client: Client) -> None:
    register = "/v1/agent/service/register"
    bodies: list[Any] = [
        [], {"Name": "a b", "Port": 1}, {"Name": "x", "Port": 0}, {"Name": "x", "Port": 1, "Address": "a b"},
        {"Name": "x", "Port": 1, "Check": {"TTL": "soon"}}, {"Name": "x", "Port": 1, "Check": {"Script": "rm"}},
        {"Name": "x", "Port": 1, "Address": "10.0.0.1", "Check": {"HTTP": "http://10.0.0.2/", "Interval": "10s"}},
        {"Name": "x", "Port": 1, "Tags": [1]}, {"Name": "x", "Port": 1, "Meta": {"k": 1}}, {"Name": "x", "Port": True},
        {"Name": "x", "Port": 1, "Weights": {"Passing": -1}}, {"Name": "x", "Port": 1, "Checks": 7},
        {"Name": "x", "Port": 1, "Check": {"TTL": "0s"}}, {"Name": "x", "Port": 1, "Check": {"TTL": "25h"}},
        {"Name": "x", "Port": 1, "Check": {"TTL": "9s", "DeregisterCriticalServiceAfter": "99999999999999999999h"}},
    ]  # fmt: skip
    for body in bodies:
        assert (await client.call("PUT", register, data=orjson.dumps(body))).refusal == (422, "invalid_request"), body
    assert (await client.call("PUT", register, data=b"{")).refusal == (400, "malformed_json")
    assert (await client.call("PUT", register, data=b'"' + b"x" * 70_000 + b'"')).refusal == (413, "payload_too_large")
    odd = {"Name": fresh("odd"), "Address": "10.0.0.1", "Port": 1, "Check": {"TTL": "9s", "Status": ["passing"]}}
    assert (await client.call("PUT", register, data=orjson.dumps(odd))).status == 200  # no status: it begins critical
    update = f"/v1/agent/check/update/service:{odd['Name']}"
    assert (await client.call("PUT", update, data=b'{"Status": {}}')).refusal == (422, "invalid_request")
    assert (await client.get("/v1/health/service/x?index=7a")).refusal == (422, "invalid_request")
    assert (await client.get("/v1/catalog/services?index=1&wait=-1s")).refusal == (422, "invalid_request")
