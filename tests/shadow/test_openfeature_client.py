"""The OpenFeature SDK for Python and its OFREP provider, unmodified, against a whole server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from tests.credits.ledger_client import fresh
from tests.server import ROOT_KEY, ShieldxServer

TIMEOUT_S = 20.0


def post(server: ShieldxServer, path: str, body: Any, **fields: str) -> tuple[int, Any, str | None]:
    """Return status, body and entity tag of an answer."""
    headers = {"Content-Type": "application/json"} | (
        {} if "X-API-Key" in fields else {"Authorization": f"Bearer {ROOT_KEY}"}
    )
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = requests.post(server.url + path, data, headers=headers | fields, timeout=TIMEOUT_S)
    return answer.status_code, answer.json() if answer.content else None, answer.headers.get("ETag")


def experiment(server: ShieldxServer, values: tuple[Any, Any], **fields: Any) -> str:
    name = fresh("flag")
    variants = [{"name": "a", "control": True, "value": values[0]}, {"name": "b", "value": values[1]}]
    status, made, _ = post(server, "/v1/experiments", {"name": name, "allocation": "fixed", "variants": variants, **fields})
    assert status == 201, made
    return name


@contextlib.contextmanager
def stream(server: ShieldxServer, path: str, **fields: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the events of a stream: what each says, with its id; a comment for what is none."""
    headers = {"X-API-Key": ROOT_KEY, "Accept": "text/event-stream"} | fields

    def events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        event: dict[str, Any] = {}
        for line in lines:
            field, _, value = line.decode().partition(": ")
            if field == "" and value:
                yield {"comment": value}
            elif field == "id":
                event = {"id": value}
            elif field == "data":
                yield json.loads(value) | event

    with requests.get(server.url + path, headers=headers, timeout=TIMEOUT_S, stream=True) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield events(answer.iter_lines(chunk_size=1))


@pytest.fixture(params=["bearer", "api key"])
def client(request: pytest.FixtureRequest, server: ShieldxServer) -> Iterator[OpenFeatureClient]:
    """A client whose key goes in either of the two fields that the protocol names."""
    fields = {"Authorization": f"Bearer {ROOT_KEY}"} if request.param == "bearer" else {"X-API-Key": ROOT_KEY}
    provider = OFREPProvider(server.url, headers_factory=lambda: fields, timeout=TIMEOUT_S)
    api.set_provider(provider)
    yield api.get_client()
    api.clear_providers()
    provider.session.close()


def test_the_client_gets_the_values_of_flags_of_every_type(client: OpenFeatureClient, server: ShieldxServer) -> None:
    who = EvaluationContext("u1", {"plan": "pro", "seats": 3})
    truth, text = experiment(server, (False, True)), experiment(server, ("red", "blue"))
    number, fraction = experiment(server, (1, 2)), experiment(server, (1.0, 2.0))

    details = client.get_boolean_details(truth, False, who)

    assert details.error_code is None
    assert (details.reason, details.value) == (Reason.SPLIT, details.variant == "b")
    assert details.flag_metadata["experiment"] == truth
    assert client.get_string_value(text, "none", who) in {"red", "blue"}
    assert client.get_integer_value(number, 9, who) in {1, 2}
    assert client.get_float_value(fraction, 9.0, who) in {1.0, 2.0}
    assert client.get_boolean_details(truth, False, who) == details


def test_the_client_falls_back_to_its_default_with_the_protocols_error(
    client: OpenFeatureClient, server: ShieldxServer
) -> None:
    name = experiment(server, (False, True))

    unknown = client.get_boolean_details(fresh("nobody"), True, EvaluationContext("u1"))
    nobody = client.get_boolean_details(name, True)
    odd = client.get_boolean_details(name, True, EvaluationContext("x" * 300))
    mistyped = client.get_string_details(name, "code", EvaluationContext("u1"))

    assert [one.error_code for one in (unknown, nobody, odd, mistyped)] == [
        ErrorCode.FLAG_NOT_FOUND, ErrorCode.TARGETING_KEY_MISSING, ErrorCode.INVALID_CONTEXT, ErrorCode.TYPE_MISMATCH
    ]  # fmt: skip
    assert [one.value for one in (unknown, nobody, odd, mistyped)] == [True, True, True, "code"]


def test_a_client_with_a_wrong_key_is_told_so(server: ShieldxServer) -> None:
    provider = OFREPProvider(server.url, headers_factory=lambda: {"X-API-Key": "wrong"}, timeout=TIMEOUT_S)
    api.set_provider(provider)

    details = api.get_client().get_boolean_details("x", True, EvaluationContext("u1"))

    assert (details.error_code, details.error_message) == (ErrorCode.GENERAL, "unauthorized")
    api.clear_providers()
    provider.session.close()


def test_all_flags_come_at_once_and_not_again_while_nothing_changed(server: ShieldxServer) -> None:
    name = experiment(server, (False, True))
    path = "/ofrep/v1/evaluate/flags"

    status, body, tag = post(server, path, {"context": {"targetingKey": "u1"}})
    unchanged = post(server, path, {"context": {"targetingKey": "u1"}}, **{"If-None-Match": str(tag)})
    other = post(server, f"{path}?flagConfigEtag=x", {"context": {"targetingKey": "u2"}}, **{"If-None-Match": str(tag)})
    nobody = post(server, path, {})

    flags = {one["key"]: one for one in body["flags"]}
    assert (status, flags[name]["reason"], flags[name]["value"] in {False, True}) == (200, "SPLIT", True)
    assert (unchanged[0], unchanged[2], other[0]) == (304, tag, 200)
    assert {one["key"]: one.get("errorCode") for one in nobody[1]["flags"]}[name] == "TARGETING_KEY_MISSING"


def test_the_stream_that_is_offered_tells_of_every_change_of_a_flag_and_not_twice(server: ShieldxServer) -> None:
    name = experiment(server, (False, True))
    path = "/ofrep/v1/evaluate/flags"
    offered = [post(server, one, {"context": {"targetingKey": "u1"}})[1] for one in (path, f"{path}/{name}")]
    where = offered[0]["eventStreams"][0]["endpoint"]["requestUri"]

    with stream(server, where) as events:
        first = next(events)
        post(server, f"/v1/experiments/{name}/rollback", {"reason": "bad"})
        second = next(events)
    mark = requests.compat.quote(second["etag"])
    status, flag, _ = post(server, f"{path}/{name}?flagConfigEtag={mark}&flagConfigLastModified=1", {})
    experiment(server, (False, True))
    with stream(server, where, **{"Last-Event-ID": second["id"]}) as events:
        resumed = next(events)
    again, told = resumed, []
    while "id" in again:  # experiments of other tests may change meanwhile
        told.append(int(again["id"]))
        with stream(server, where, **{"Last-Event-ID": again["id"]}) as events:
            again = next(events)

    assert [one["eventStreams"][0]["type"] for one in offered] == ["sse", "sse"]
    assert {one["type"] for one in (first, second, resumed)} == {"refetchEvaluation"}
    assert int(first["id"]) < int(second["id"]) < int(resumed["id"])
    assert second["etag"] == f'"{second["id"]}"'
    assert (status, flag["reason"], flag["metadata"]["assignment"]) == (200, "DISABLED", "rolled_back")
    assert told == sorted(set(told)), "told twice"
    assert again == {"comment": "still here"}


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", "PARSE_ERROR"), (b"", "PARSE_ERROR"), (b"[]", "PARSE_ERROR"), ({"context": 5}, "INVALID_CONTEXT"),
     ({"context": {"targetingKey": 5}}, "INVALID_CONTEXT"), ({"other": {}}, "PARSE_ERROR"),
     ({"context": {"x": "y" * 50_000}}, "INVALID_CONTEXT")],
)  # fmt: skip
def test_a_request_that_is_wrong_gets_the_protocols_error(server: ShieldxServer, body: Any, code: str) -> None:
    name = experiment(server, (False, True))

    single = post(server, f"/ofrep/v1/evaluate/flags/{name}", body)
    bulk = post(server, "/ofrep/v1/evaluate/flags", body)

    assert (single[0], single[1]["key"], single[1]["errorCode"]) == (400, name, code)
    assert (bulk[0], bulk[1]["errorCode"]) == (400, code)
    assert single[1]["errorDetails"]


def test_a_key_in_the_other_field_opens_no_other_route(server: ShieldxServer) -> None:
    name = experiment(server, (False, True), event="purchase")
    told = {"event": "purchase", "targetingKey": "u1", "idempotencyKey": fresh("k"), "value": 2}

    tracked = post(server, "/v1/track", told, **{"X-API-Key": ROOT_KEY})
    refused = post(server, "/v1/experiments", {}, **{"X-API-Key": ROOT_KEY})

    assert (tracked[0], name in tracked[1]["experiments"]) == (200, True)
    assert refused[0] == 401
