"""Answers in pieces of any size, and answers that cannot be trusted."""

import pytest

from bench.wire import AnswerReader, WireError, request_head

BODY = b'{"balance":7,"note":"\r\n\r\n inside the body"}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    + str(len(BODY)).encode()
    + b"\r\nDate: now\r\n\r\n"
    + BODY
)


def reader_that_keeps() -> AnswerReader:
    """A reader that keeps bodies."""
    reader = AnswerReader()
    reader.keep_body = True
    return reader


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_answer_cut_anywhere_is_read_whole(cut: int) -> None:
    reader = reader_that_keeps()

    statuses = [reader.feed(ANSWER[:cut]), reader.feed(ANSWER[cut:])]

    assert statuses == [0, 200]
    assert reader.body == BODY


def test_answer_byte_by_byte_is_read_whole_again_and_again() -> None:
    reader = reader_that_keeps()

    for _ in range(3):
        statuses = [reader.feed(ANSWER[at : at + 1]) for at in range(len(ANSWER))]

        assert statuses == [0] * (len(ANSWER) - 1) + [200]
        assert reader.body == BODY


def test_body_is_dropped_unless_asked_for() -> None:
    reader = AnswerReader()

    assert reader.feed(ANSWER) == 200
    assert reader.body == b""


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n", 204),
        (b"HTTP/1.1 402 Payment Required\r\ncontent-length: 2\r\n\r\n{}", 402),
        (b"HTTP/1.1 503 Busy\r\nCONTENT-LENGTH: 0\r\n\r\n", 503),
    ],
)
def test_other_statuses_and_spellings_are_read(answer: bytes, status: int) -> None:
    assert AnswerReader().feed(answer) == status


def test_announced_close_is_noticed() -> None:
    reader = AnswerReader()

    reader.feed(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    assert reader.closes


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"SSH-2.0-server 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n",
        ANSWER + b"H",
        b"x" * 70_000,
    ],
    ids=["chunked", "no number", "not HTTP", "no status", "beyond the end", "endless head"],
)
def test_what_is_not_one_answer_is_a_fault(answer: bytes) -> None:
    with pytest.raises(WireError):
        AnswerReader().feed(answer)


def test_request_head_carries_key_and_length() -> None:
    head = request_head("POST", "/v1/x", host="h", token="t", idempotent=True, body=True)

    lines = (head % (b"key-1", 12)).split(b"\r\n")

    assert lines[0] == b"POST /v1/x HTTP/1.1"
    assert {b"Host: h", b"Authorization: Bearer t", b"Idempotency-Key: key-1", b"Content-Length: 12"} < {*lines}
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize("token", ["50%", "a\r\nX-Other: b"])
def test_part_that_would_break_the_request_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="template"):
        request_head("GET", "/", host="h", token=token, idempotent=False, body=False)
