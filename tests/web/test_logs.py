"""What a log line holds, and what it never holds."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web.logs import LineBudget, configure_logging, redact

SECRETS = ("shx_live_abcDEF123", "hunter2", "order-4711")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream that takes the lines of the root logger; the logging set-up is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    buffer = io.StringIO()
    configure_logging("debug", buffer)
    yield buffer
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def raised(error: Exception) -> Exception:
    """An exception that has a traceback."""
    try:
        raise error
    except type(error):
        return error


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_is_one_json_object_with_its_extra_fields(stream: io.StringIO) -> None:
    logging.getLogger("shieldx.test").warning("took %d\nlines", 2, extra={"request_id": "r1", "ms": 1.5, "of": ["a"]})

    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "shieldx.test",
        "message": "took 2\nlines",
        "request_id": "r1",
        "ms": 1.5,
        "of": "['a']",
    }
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer shx_live_abcDEF123",
        "authorization=Basic hunter2",
        "{'Authorization': 'Bearer hunter2', 'Idempotency-Key': 'order-4711'}",
        "(b'Authorization', b'Bearer hunter2'), (b'idempotency-key', b'order-4711')",
        "GET / with bearer hunter2 and shx_live_abcDEF123",
        "redis://:hunter2@localhost:6379/0",
        "rediss://user:hunter2@localhost",
        "postgresql://shieldx:hunter2@db/shieldx?sslmode=require",
        "postgresql://shieldx:p@ss:hunter2@db and https://a:hunter2@b",
        "Idempotency-Key: order-4711",
        "idempotency_key='order-4711'",
        "key shx_live_abcDEF123, shx_live_abcDEF123.",
    ],
)
def test_secrets_are_in_no_part_of_a_line(stream: io.StringIO, text: str) -> None:
    log = logging.getLogger("shieldx.test")
    _, password, key = SECRETS
    extra = {"note": text, "list": [text], "authorization": password}
    log.error("failed with %s", text, exc_info=raised(ValueError(text)), extra=extra)
    log.error(text, stack_info=True, extra={"token": password, "idempotency_key": key})

    assert len(lines(stream)) == 2
    assert not [secret for secret in SECRETS if secret in stream.getvalue()]


def test_exception_of_a_request_is_logged_without_its_text(stream: io.StringIO) -> None:
    cause = raised(ValueError("card 4111111111111111"))
    outer = RuntimeError("outer 4111111111111111")
    outer.__cause__ = cause

    logging.getLogger("shieldx.test").error("failed", exc_info=outer, extra={"request_id": "r1"})

    (line,) = lines(stream)
    assert [link["type"] for link in line["exceptions"]] == ["RuntimeError", "ValueError"]
    assert line["exceptions"][1]["frames"][-1].endswith(" raised")
    assert "4111" not in stream.getvalue()


def test_exception_of_the_process_is_logged_with_its_text(stream: io.StringIO) -> None:
    logging.getLogger("shieldx.test").error("cannot start", exc_info=raised(OSError("no such directory")))

    assert lines(stream)[0]["exceptions"][0]["text"] == "no such directory"


CARD_TEXTS = (
    "4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "4111%201111%201111%201111", "card=4111111111111111&x=1",
    ";4111111111111111=25121010000012345678?", '{"card_number": "4111111111111111", "cvv": "9874"}', "cvv=9874",
    "Payment(card_number='4111111111111112', cvv='9874', cardholder_name='Jonathan Doe')",
)  # fmt: skip


@pytest.mark.parametrize("text", CARD_TEXTS)
def test_payment_data_is_in_no_part_of_a_line(stream: io.StringIO, text: str) -> None:
    log = logging.getLogger("shieldx.test")
    payment = {"card_number": "4111111111111112", "cvv": "9874", "cardholder_name": "Jonathan Doe"}
    cause = raised(KeyError(text))
    error = raised(ValueError(text))
    error.__cause__ = cause
    log.error("failed with %s", text, exc_info=error, extra={"note": text, "list": [text], "payment": payment})
    log.error(text, stack_info=True, extra={"cvv": "9874", "card_number": 4111111111111111, "number": 4111111111111111})
    log.error("%s", payment, extra={"ip": "203.0.113.7", "user_agent": "curl/8.5.0", "cardholder_name": "Jonathan Doe"})

    found = lines(stream)
    assert len(found) == 3
    whole = stream.getvalue()
    assert not [part for part in ("4111111111111", "1111 1111", "1111-1111", "11111111", "9874", "Jonathan", "203.0.113.7", "8.5.0")
                if part in whole]  # fmt: skip
    assert "cvv" not in found[1]
    assert (found[2]["ip"], found[2]["user_agent"], found[2]["cardholder_name"]) == ("203.0.113.0/24", "curl 8", "Jo****")


def test_numbers_that_are_no_cards_stay_numbers(stream: io.StringIO) -> None:
    logging.getLogger("shieldx.test").warning("took", extra={"seq": 1748503543012, "ms": 1.5, "leading": True})

    (line,) = lines(stream)
    assert (line["seq"], line["ms"], line["leading"]) == (1748503543012, 1.5, True)


@given(st.text())
def test_redaction_is_idempotent(text: str) -> None:
    once = redact(text)

    assert redact(once) == once


def test_ordinary_text_is_kept() -> None:
    text = "shard 0 at http://127.0.0.1:5004/docs took the key of tenant:a@b in 5 ms"

    assert redact(text) == text


def test_a_second_has_so_many_lines_and_the_next_one_says_how_many_were_left_out() -> None:
    budget = LineBudget(3)

    taken = [budget.take(now_s) for now_s in (7.0, 7.1, 7.2, 7.3, 7.999, 8.0, 8.1, 9.5)]

    assert taken == [0, 0, 0, None, None, 2, 0, 0]


@pytest.mark.parametrize("level", ["", "loud", "notset", "10"])
def test_unknown_level_is_refused(level: str) -> None:
    with pytest.raises(ValueError, match="level must be"):
        configure_logging(level)
