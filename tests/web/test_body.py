"""What a body may be, and how each wrong one is refused."""

import asyncio
import json
import logging
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_sample import AUTH, JSON, Open, Server, Spend, eventually, exchange, parse

from app.web.body import Body, check_json
from app.web.fields import METADATA_MAX_BYTES, Amount, Input
from app.web.problems import Problem

HEADERS = {**AUTH, **JSON, "Idempotency-Key": "k"}
BODY = Body(Spend)
NESTED = Body(Open)


def refusal(data: bytes, body: Body[Any] = BODY) -> Problem:
    with pytest.raises(Problem) as caught:
        body.decode(data)
    return caught.value


def spend(**members: object) -> bytes:
    return json.dumps({"tenant_id": "t1", "amount": 5, **members}).encode()


def text_with(member: str) -> bytes:
    return b'{"tenant_id":"t1","amount":5,' + member.encode("utf-8", "surrogatepass") + b"}"


MALFORMED = {
    "nothing": b"",
    "space": b" ",
    "cut": b'{"tenant_id":"t1"',
    "trailing": spend() + b"x",
    "two texts": spend() + spend(),
    "byte order mark": b"\xef\xbb\xbf" + spend(),
    "comment": b'{"tenant_id":"t1",/**/"amount":5}',
    "single quotes": b"{'tenant_id':'t1','amount':5}",
    "leading zero": b'{"tenant_id":"t1","amount":05}',
    "plus sign": b'{"tenant_id":"t1","amount":+5}',
    "hexadecimal": b'{"tenant_id":"t1","amount":0x5}',
    "NaN": text_with('"metadata":{"a":NaN}'),
    "NaN amount": b'{"tenant_id":"t1","amount":NaN}',
    "Infinity": text_with('"metadata":{"a":-Infinity}'),
    "control character": text_with('"description":"a\tb"'),
    "bad UTF-8": text_with('"description":"').replace(b'"}', b"") + b'\xff"}',
    "surrogate in UTF-8": text_with('"description":"\ud800"'),
    "lone surrogate": text_with('"description":"\\ud800"'),
    "lone low surrogate": text_with('"description":"\\udc00 x"'),
    "swapped surrogates": text_with('"metadata":{"a":"\\udc00\\ud800"}'),
    "lone surrogate in an unknown field": text_with('"other":"\\ud800"'),
    "duplicate": text_with('"amount":5'),
    "duplicate with another value": text_with('"tenant_id":"t2"'),
    "duplicate by escape": text_with('"amo\\u0075nt":5'),
    "duplicate in metadata": text_with('"metadata":{"a":1,"a":1}'),
    "duplicate deep": text_with('"metadata":{"b":[{"a":1,"a":2}]}'),
    "duplicate beside an omitted default": b'{"tenant_id":"t1","amount":5,"amount":6,"description":""}',
    "duplicate in an unknown field": text_with('"other":{"a":1,"a":2}'),
    "depth 40": text_with('"metadata":{"a":' + "[" * 40 + "]" * 40 + "}"),
    "depth 1,000": text_with('"metadata":{"a":' + "[" * 1000 + "]" * 1000 + "}"),
    "depth 100,000": text_with('"metadata":{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "open depth 100,000": b"[" * 100_000,
    "object depth 100,000": b'{"a":' * 100_000,
    "depth in an unknown field": text_with('"other":' + "[" * 1000 + "]" * 1000),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_text_that_is_not_one_json_value_is_malformed(name: str) -> None:
    problem = refusal(MALFORMED[name])

    assert (problem.status, problem.code) == (400, "malformed_json")


INVALID = {
    "float amount": (b'{"tenant_id":"t1","amount":1.0}', "/amount"),
    "exponent amount": (b'{"tenant_id":"t1","amount":1e3}', "/amount"),
    "negative exponent": (b'{"tenant_id":"t1","amount":10e-1}', "/amount"),
    "text amount": (spend(amount="1"), "/amount"),
    "true amount": (spend(amount=True), "/amount"),
    "null amount": (spend(amount=None), "/amount"),
    "zero amount": (spend(amount=0), "/amount"),
    "minus zero": (b'{"tenant_id":"t1","amount":-0}', "/amount"),
    "negative amount": (spend(amount=-1), "/amount"),
    "amount of 10^14": (spend(amount=10**14), "/amount"),
    "amount of 2^64": (spend(amount=2**64), "/amount"),
    "amount of 400 digits": (spend(amount=10**400), "/amount"),
    "amount of 5,000 digits": (b'{"tenant_id":"t1","amount":' + b"9" * 5000 + b"}", "/amount"),
    "amount of 1e999": (b'{"tenant_id":"t1","amount":1e999}', "/amount"),
    "name with newline": (spend(tenant_id="t1\n"), "/tenant_id"),
    "empty name": (spend(tenant_id=""), "/tenant_id"),
    "name of 65": (spend(tenant_id="a" * 65), "/tenant_id"),
    "name with slash": (spend(tenant_id="a/b"), "/tenant_id"),
    "missing field": (b'{"tenant_id":"t1"}', "/amount"),
    "unknown field": (spend(amout=4), "/amout"),
    "unknown field that is a card number": (spend(**{"4111111111111111": 4}), ""),
    "array": (b"[1]", ""),
    "null": (b"null", ""),
    "metadata array": (spend(metadata=[]), "/metadata"),
    "metadata of 2^63": (spend(metadata={"a": [2**63]}), "/metadata"),
    "metadata of 30 digits": (spend(metadata={"a": 10**30}), "/metadata"),
    "metadata with U+0000": (spend(metadata={"a": "\0"}), "/metadata"),
    "metadata key with U+0000": (spend(metadata={"\0": 1}), "/metadata"),
    "metadata too large": (spend(metadata={"a": "x" * METADATA_MAX_BYTES}), "/metadata"),
    "description with U+0000": (spend(description="a\0"), "/description"),
    "description too long": (spend(description="a" * 501), "/description"),
}


@pytest.mark.parametrize("name", INVALID)
def test_value_of_the_wrong_shape_is_invalid_at_its_pointer(name: str) -> None:
    data, pointer = INVALID[name]

    problem = refusal(data)

    assert (problem.status, problem.code) == (422, "invalid_request")
    assert [error.pointer for error in problem.errors] == [pointer]


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        (b'{"tenant_id":"t1","quota":{"limit":1,"period":"4111111111111111"}}', "/quota/period"),
        (b'{"tenant_id":"t1","quota":{"limit":1}}', "/quota/period"),
        (
            b'{"tenant_id":"t1","spends":[{"tenant_id":"a","amount":1},{"tenant_id":"a","amount":"x"}]}',
            "/spends/1/amount",
        ),
        (b'{"tenant_id":"t1","spends":[{"tenant_id":"a","amount":1,"x":2}]}', "/spends/0/x"),
    ],
)
def test_pointer_names_the_place_inside_arrays_and_objects(data: bytes, pointer: str) -> None:
    problem = refusal(data, NESTED)

    assert [error.pointer for error in problem.errors] == [pointer]
    assert "4111" not in problem.errors[0].detail


def test_ordinary_bodies_are_read() -> None:
    plain = BODY.decode(spend())
    full = BODY.decode(spend(description='a "quoted" \\ text', metadata={"a": [1, 2.5, None, {"b": "\\u0000 é"}]}))

    assert plain == Spend(tenant_id="t1", amount=5)
    assert full.description == 'a "quoted" \\ text'
    assert full.metadata == {"a": [1, 2.5, None, {"b": "\\u0000 é"}]}


@pytest.mark.parametrize("amount", [1, 10**14 - 1])
def test_amounts_at_the_ends_of_the_range_are_read(amount: int) -> None:
    assert BODY.decode(spend(amount=amount)).amount == amount


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(alphabet='ab"\\é\u0001', max_size=5)
pairs = st.lists(st.tuples(st.sampled_from(["a", "b", "\\u0061", "c"]), st.deferred(lambda: texts)), max_size=4)
texts: st.SearchStrategy[str] = st.one_of(
    scalars.map(json.dumps),
    st.lists(st.deferred(lambda: texts), max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
    pairs.map(lambda items: "{" + ",".join(f'"{key}":{text}' for key, text in items) + "}"),
)
members = st.lists(
    st.one_of(
        st.just('"tenant_id":"t1"'),
        st.just('"amount":5'),
        st.just('"description":""'),
        st.just('"description":"a"'),
        st.just('"metadata":null'),
        st.builds('"metadata":{{"a":{}}}'.format, texts),
        st.builds('"metadata":{{"a":{},"b":{}}}'.format, texts, texts),
    ),
    max_size=5,
)


def has_duplicate(text: str) -> bool:
    found = False

    def note(items: list[tuple[str, object]]) -> None:
        nonlocal found
        found = found or len(dict(items)) != len(items)

    json.loads(text, object_pairs_hook=note)
    return found


@given(members)
def test_duplicate_keys_are_found_exactly_when_a_full_parse_finds_them(parts: list[str]) -> None:
    text = "{" + ",".join(['"tenant_id":"t1"', '"amount":5', *parts]) + "}"

    code = ""
    try:
        BODY.decode(text.encode())
    except Problem as problem:
        code = problem.code

    assert has_duplicate(text) == (code == "malformed_json")


@given(st.binary(max_size=60) | texts.map(str.encode))
def test_any_bytes_are_a_value_or_a_problem(data: bytes) -> None:
    for body in (BODY, NESTED):
        try:
            body.decode(data)
            status = 200
        except Problem as problem:
            status = problem.status
        assert status in {200, 400, 422}


@given(texts)
def test_check_json_agrees_with_the_reference(text: str) -> None:
    duplicate = has_duplicate(text)

    try:
        check_json(text.encode())
    except Problem:
        refused = True
    else:
        refused = False

    assert refused == duplicate


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)))
def test_values_never_stand_in_a_refusal(value: object) -> None:
    data = json.dumps({"tenant_id": value, "amount": "4111111111111111"}).encode()

    problem = refusal(data)

    assert "4111" not in problem.detail + "".join(error.detail for error in problem.errors)


def test_a_struct_that_could_hide_a_duplicate_key_is_refused_when_the_route_is_made() -> None:
    class WithDefaults(msgspec.Struct, forbid_unknown_fields=True):
        amount: Amount = 1

    class Unread(Input, frozen=True):
        rest: msgspec.Raw

    class Made(Input, frozen=True):
        name: str = msgspec.field(default_factory=lambda: "x")

    for struct in (WithDefaults, Unread, Made):
        with pytest.raises(TypeError):
            Body(struct)


async def test_body_is_read_and_answered(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/spend", data=spend(), headers=HEADERS) as answer:
        assert answer.status == 200
        assert await answer.json() == {"tenant_id": "t1", "amount": 5, "key": "k"}
        assert answer.headers["ETag"] == '"7"'


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ('Application/JSON; charset="UTF-8"', 200),
        ("application/json;version=1", 200),
        ("application/json; charset=latin-1", 415),
        ("text/json", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
    ],
)
async def test_media_type_must_be_json_in_utf_8(client: aiohttp.ClientSession, media_type: str, status: int) -> None:
    headers = {**HEADERS, "Content-Type": media_type}

    async with client.post("/v1/spend", data=spend(), headers=headers) as answer:
        assert answer.status == status


async def test_compressed_body_is_refused(client: aiohttp.ClientSession) -> None:
    headers = {**HEADERS, "Content-Encoding": "gzip"}

    async with client.post("/v1/spend", data=b"\x1f\x8b", headers=headers, skip_auto_headers=()) as answer:
        assert answer.status == 415


def head(length: str) -> bytes:
    return (
        f"POST /v1/spend HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\nIdempotency-Key: k\r\n"
        f"Content-Type: application/json\r\n{length}\r\n\r\n"
    ).encode()


async def test_declared_length_above_the_limit_is_refused_before_the_body(server: Server) -> None:
    answer = parse(await exchange(server.port, head("Content-Length: 999999")))

    assert answer.status == 413
    assert answer.json()["code"] == "payload_too_large"
    assert answer.headers["connection"] == "close"


async def test_chunks_above_the_limit_are_refused_while_they_stream(server: Server) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"

    answer = parse(await exchange(server.port, head("Transfer-Encoding: chunked"), *([chunk] * 12)))

    assert answer.status == 413


async def test_whole_body_above_the_limit_is_refused(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/spend", data=spend(metadata={"a": "x" * 8000}), headers=HEADERS) as answer:
        assert answer.status == 413


async def test_body_that_stalls_is_answered_408_and_closed(server: Server) -> None:
    answer = parse(await exchange(server.port, head("Content-Length: 40"), b'{"tenant_id"'))

    assert answer.status == 408
    assert answer.json()["code"] == "request_timeout"


async def test_body_in_pieces_is_put_together(server: Server) -> None:
    body = spend()
    first = head(f"Connection: close\r\nContent-Length: {len(body)}")

    answer = parse(await exchange(server.port, first, body[:5], body[5:11], body[11:]))

    assert answer.status == 200


async def test_client_that_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("Content-Length: 40") + b'{"tenant_id"')
    await writer.drain()
    writer.transport.abort()

    await eventually(lambda: server.connections == 0)

    # Whoever ends its side may still listen, so it is answered like any body that is cut short.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == ["POST /v1/spend 400"]


@pytest.mark.parametrize("data", [b"", None])
async def test_absent_body_is_malformed(client: aiohttp.ClientSession, data: bytes | None) -> None:
    async with client.post("/v1/spend", data=data, headers=HEADERS) as answer:
        assert answer.status == 400
        assert (await answer.json())["code"] == "malformed_json"
