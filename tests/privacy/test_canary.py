"""Card numbers, in every notation and at every place of a request, are in no sink afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.credits.ledger_client import AUTHORIZED, Client, fresh
from tests.credits.ledger_house import Ledger, LedgerHouse
from tests.privacy.canary_sinks import Canaries, files_text, notations, postgres_text, redis_text
from tests.server import ShieldxServer

FIELDS = ("description", "tenant_id", "amount", "payment", "card_number", "expected_version")
FEW = {"plain", "spaces", "dashes", "fullwidth", "percent", "track-2"}  # for calls that share what others were tried with
TYPED = "5555 5555 5555 4444"  # a card that is well formed
SECRET_WORDS = ("DOE/JOHN", '"987"', "Jonathan", "Probe/9.8.7", "203.0.113.77")
Send = Callable[..., Awaitable[tuple[int, str]]]


class Sender:
    """Sends requests as they are given and keeps every answer: status line, header fields and body."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.answers: list[tuple[str, int, str]] = []

    async def send(
        self, place: str, method: str, path: str, body: object = None, raw: bytes | None = None, **headers: str
    ) -> int:
        """Send one request; the body as JSON, or `raw` as it is."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = raw if raw is not None else None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if data is not None:
            named.setdefault("Content-Type", "application/json")
        try:
            async with self.session.request(
                method,
                URL(self.url + path, encoded=True),
                data=data,
                headers=AUTHORIZED | {"Idempotency-Key": fresh("k")} | named,
            ) as answer:
                text = f"{dict(answer.headers)!r}\n{(await answer.read()).decode('latin-1')}"
                self.answers.append((place, answer.status, text))
                return answer.status
        except (ValueError, aiohttp.InvalidURL):
            return 0  # The client itself refuses to put this into a request.


@pytest.fixture
async def ledger(house: LedgerHouse) -> Ledger:
    return await house.make_ledger()


@pytest.fixture
async def server(house: LedgerHouse, ledger: Ledger) -> AsyncIterator[ShieldxServer]:
    server = house.server_on(ledger, fresh("canary"), log_level="debug")
    await server.start()
    yield server
    server.kill()


@pytest.fixture
async def sender(server: ShieldxServer) -> AsyncIterator[Sender]:
    async with aiohttp.ClientSession() as session:
        yield Sender(session, server.url)


@pytest.fixture(scope="session")
def shared(house: LedgerHouse) -> tuple[ShieldxServer, Ledger]:
    return house.server(1)


@pytest.fixture
async def anybody(shared: tuple[ShieldxServer, Ledger]) -> AsyncIterator[Sender]:
    """Sends to the session's server, whose log and stores others write to as well."""
    async with aiohttp.ClientSession() as session:
        yield Sender(session, shared[0].url)


async def raw_bytes(server: ShieldxServer, data: bytes) -> str:
    """Send bytes that may be no HTTP and return what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    return answer.decode("latin-1")


async def send_bodies(sender: Sender, canaries: Canaries, tenant: str) -> None:
    """Put a number of each notation into every field of every call that has a body."""
    for notation in notations("0" * 16):

        def card(place: str, notation: str = notation) -> str:
            return notations(canaries.number(f"{place} {notation}"))[notation]

        good = {"tenant_id": tenant, "amount": 5}
        for call in ("topup", "consume", "reserve"):
            path = f"/v1/credits/{call}"
            for field in FIELDS if call == "consume" else FIELDS[:2]:
                await sender.send(f"{call} {field}", "POST", path, good | {field: card(f"{call} {field}")})
            metadata = {card("key"): 1, "value": card("value"), "deep": [{"pan": card("pan")}], "cvv": "987",
                        "cardholder_name": "Jonathan Doe", "json": json.dumps({"card_number": card("json")})}  # fmt: skip
            assert await sender.send(f"{call} metadata", "POST", path, good | {"metadata": metadata}) == 200
        await sender.send(
            "account", "POST", "/v1/accounts", {"tenant_id": card("account"), "metadata": {"m": card("account")}}
        )
        await sender.send(
            "account", "POST", "/v1/accounts", {"tenant_id": fresh("t"), "metadata": {"m": card("account metadata")}}
        )
        await sender.send("change", "PATCH", f"/v1/accounts/{tenant}", {"metadata": {card("change"): card("change value")}})
        items = [{"op": "consume", **good, "description": card("item"), "idempotency_key": fresh("i")},
                 {"op": "consume", **good, "metadata": {"m": card("item metadata")}}]  # fmt: skip
        assert await sender.send("batch", "POST", "/v1/credits/batch", {"operations": items}) == 200
        for field in ("tenant_id", "idempotency_key", "op", "reservation_id", card("item field")):
            await sender.send(
                "batch",
                "POST",
                "/v1/credits/batch",
                {"operations": [{"op": "consume", **good, field: card("item " + field)}]},
            )
        if notation in FEW:
            await send_payments(sender, card, good)
            await send_to_the_console(sender, card)
        legs = [{"tenant_id": card("leg"), "amount": 1}, {"tenant_id": tenant, "amount": -1}]
        await sender.send("legs", "POST", "/v1/transactions", {"legs": legs})
        for call in ("refund", f"reservations/{fresh('r')}/commit"):
            await sender.send(call, "POST", f"/v1/credits/{call}", {"transaction_id": card(call), "description": card(call)})


async def send_payments(sender: Sender, card: Callable[[str], str], good: dict[str, Any]) -> None:
    """Put a number into every field of a payment, alone and in a batch; those that people would type are accepted."""
    for field in ("card_number", "cardholder_name", "cvv", "expiry", "pin"):
        payment = {"card_number": TYPED, "cvv": "987", "cardholder_name": "Jonathan Doe"} | {field: card("payment " + field)}
        await sender.send("payment " + field, "POST", "/v1/credits/topup", good | {"payment": payment})
        item = {"op": "topup", **good, "payment": payment | {field: card("payment item " + field)}}
        await sender.send("payment item " + field, "POST", "/v1/credits/batch", {"operations": [item]})
    nobody = good | {"tenant_id": fresh("nobody")}
    await sender.send("payment", "POST", "/v1/credits/topup", nobody | {"payment": {"card_number": card("payment nobody")}})


async def send_to_the_console(sender: Sender, card: Callable[[str], str]) -> None:
    """Put a number into the calls that keys, webhooks, erasures and verification have."""
    for name, path, body in (
        ("key name", "/v1/keys", {"name": card("key name"), "role": "reader"}),
        ("key tenant", "/v1/keys", {"name": "n", "role": "reader", "tenants": [card("key tenant")]}),
        ("webhook", "/v1/webhooks", {"url": f"https://example.com/{card('webhook url')}"}),
        ("webhook text", "/v1/webhooks", {"url": "https://example.com/", "description": card("webhook text")}),
        ("erasure", "/v1/privacy/erasures", {"subject": card("erasure")}),
        ("basis", "/v1/privacy/erasures", {"subject": "nobody", "basis": card("basis")}),
        ("verify", "/v1/audit/verify", {"checkpoint": card("verify")}),
    ):
        await sender.send(name, "POST", path, body)


async def send_broken(sender: Sender, canaries: Canaries, tenant: str) -> None:
    """Put a number of each notation into bodies that are refused."""
    for notation in notations("0" * 16):
        text = notations(canaries.number(f"broken {notation}"))[notation].encode()
        for raw in (
            text, b'{"tenant_id":"' + text, b'{"' + text + b'":1,"' + text + b'":2}', b"\xff" + text, b"[" * 50 + text,
            b'{"tenant_id":"' + tenant.encode() + b'","amount":' + text + b"}", text * 4_000, b'{"a":"\\ud800' + text + b'"}',
        ):  # fmt: skip
            assert await sender.send("broken", "POST", "/v1/credits/consume", raw=raw) >= 400
        await sender.send("media type", "POST", "/v1/credits/consume", raw=text, Content_Type="text/plain")


async def send_around(sender: Sender, canaries: Canaries, tenant: str) -> None:
    """Put a number of each notation into header fields, paths and queries."""
    good = {"tenant_id": tenant, "amount": 1}
    person = {"User_Agent": "Probe/9.8.7 (X11)", "X_Forwarded_For": "203.0.113.77", "Forwarded": "for=203.0.113.77"}
    for key in (AUTHORIZED["Authorization"], "Bearer nobody"):
        await sender.send("person", "POST", "/v1/credits/consume", good, Authorization=key, **person)
    for notation in notations("0" * 16):

        def card(place: str, notation: str = notation) -> str:
            return notations(canaries.number(f"{place} {notation}"))[notation]

        for header in ("X-Request-ID", "Idempotency-Key", "User-Agent", "Referer", "Cookie", "X-Card", "Authorization",
                       "If-Match", "X-Forwarded-For", "Content-Type", "Accept", "Expect"):  # fmt: skip
            await sender.send(header, "POST", "/v1/credits/consume", good, **{header: card(header)})
        for path in (
            "/v1/accounts/{}",
            "/v1/{}",
            "/{}",
            "/v1/transactions/{}",
            "/v1/credits/reservations/{}",
            "/v1/accounts/{}/usage",
            "/v1/audit/receipts/{}",
            "/tiles/0/{}",
            "/v1/keys/{}",
            "/v1/webhooks/{}",
        ):
            await sender.send(path, "GET", path.format(URL.build(path="/" + card(path)).raw_path[1:]))
        await sender.send(
            "path", "PATCH", "/v1/accounts/" + URL.build(path="/" + card("patch")).raw_path[1:], {"metadata": {}}
        )
        for query in ("cursor", "type", "from", "limit", "card", "at"):
            value = URL.build(query={query: card("?" + query)}).raw_query_string
            await sender.send("query", "GET", f"/v1/accounts/{tenant}/transactions?{value}")


async def test_no_card_number_is_in_any_sink(
    sender: Sender, server: ShieldxServer, ledger: Ledger, house: LedgerHouse
) -> None:
    canaries = Canaries()
    tenant = await Client(sender.session, server.url).tenant(100_000)

    await send_bodies(sender, canaries, tenant)
    await send_broken(sender, canaries, tenant)
    await send_around(sender, canaries, tenant)
    malformed = [canaries.number(f"malformed {number}").encode() for number in range(4)]
    for data in (b"GET /%s\r\n\r\n" % malformed[0], b"%s\r\n\r\n" % malformed[1], b"GET / HTTP/1.1\r\n%s\r\n\r\n" % malformed[2],
                 b"POST /v1/credits/consume HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % malformed[3]):  # fmt: skip
        sender.answers.append(("malformed", 400, await raw_bytes(server, data)))
    for path in (
        f"/v1/accounts/{tenant}/transactions?limit=1000",
        f"/v1/accounts/{tenant}",
        "/v1/accounts?limit=1000",
        "/metrics",
        "/ready",
    ):
        assert await sender.send("read " + path, "GET", path) == 200

    sinks = {"log": server.log.read_text(errors="replace"), "redis": redis_text(ledger), "postgres": postgres_text(ledger)}
    sinks["store logs"] = files_text(house.redis.directory.log, house.postgres.directory.log)
    sinks["answers"] = "\n".join(text for _, _, text in sender.answers)
    leaks = [f"{name}: {place}" for name, text in sinks.items() for place in canaries.found_in(text)]
    assert leaks[:20] == []
    for name, text in sinks.items():
        assert not [form for form in ("5555 5555 5555 4444", "5555555555554444") if form in text], name
    assert len(canaries.places) > 1_000
    assert '"card_number": "****-****-****-4444"' in sinks["postgres"]
    assert [f"{name}: {word}" for word in SECRET_WORDS for name, text in sinks.items() if word in text] == []
    assert "****-****-****-" in sinks["postgres"]
    assert b'"network":"127.0.0.0/24"'.hex() in sinks["postgres"]  # of who came without a key
    statuses = [status for _, status, _ in sender.answers]
    assert 500 not in statuses
    assert statuses.count(200) > 100


async def test_the_search_finds_what_is_there(anybody: Sender, shared: tuple[ShieldxServer, Ledger]) -> None:
    canaries = Canaries()
    digits = canaries.number("planted")
    for form in [*notations(digits).values(), f"\\x{digits.encode().hex()}", f"\\x{('ab' + digits + 'c').encode().hex()}"]:
        assert canaries.found_in(f"before {form} after") == ["planted"], form
    assert canaries.found_in(f"{digits[:-1]}") == []
    tenant = await Client(anybody.session, anybody.url).tenant(5)

    assert tenant in redis_text(shared[1])
    assert tenant in postgres_text(shared[1])


async def test_a_name_or_key_with_a_card_number_is_refused_in_clear_words(anybody: Sender) -> None:
    canaries, sender = Canaries(), anybody
    tenant = await Client(sender.session, sender.url).tenant(5)
    good: dict[str, Any] = {"tenant_id": tenant, "amount": 1}

    key = await sender.send("key", "POST", "/v1/credits/consume", good, Idempotency_Key=canaries.number("key"))
    name = await sender.send("name", "POST", "/v1/accounts", {"tenant_id": canaries.number("name")})
    item = await sender.send(
        "item",
        "POST",
        "/v1/credits/batch",
        {"operations": [{"op": "consume", **good, "idempotency_key": canaries.number("item")}]},
    )

    assert (key, name, item) == (422, 422, 422)
    for _, _, text in sender.answers:
        assert "no card number" in text


async def test_masked_text_moves_the_same_money_and_a_retry_is_the_same_request(anybody: Sender) -> None:
    canaries, sender = Canaries(), anybody
    tenant = await Client(sender.session, sender.url).tenant(100)
    body = {"tenant_id": tenant, "amount": 30, "description": f"card {canaries.number('description')}"}

    first = await sender.send("first", "POST", "/v1/credits/consume", body, Idempotency_Key="the-same")
    again = await sender.send("again", "POST", "/v1/credits/consume", body, Idempotency_Key="the-same")

    assert (first, again) == (200, 200)
    bodies = [json.loads(text.rpartition("\n")[2]) for _, _, text in sender.answers]
    assert bodies[0] == bodies[1]
    assert (bodies[0]["amount"], bodies[0]["balance"]) == (30, 70)
    assert bodies[0]["description"].startswith("card ****-****-****-")
