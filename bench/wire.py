"""HTTP/1.1 as the generator speaks it: requests as prebuilt bytes, answers parsed no further than needed."""

from typing import Final

HEAD_END: Final = b"\r\n\r\n"
STATUS_START: Final = len(b"HTTP/1.1 ")  # the three digits of the status follow the version and one space
STATUS_END: Final = STATUS_START + 3
HEAD_BYTES_MAX: Final = 65_536  # bytes; far above any head the servers send, so a larger one is a fault


class WireError(Exception):
    """The peer sent something that is not one complete HTTP/1.1 answer to one request."""


def body_length(head: bytes) -> int:
    """Length of the body that follows `head`, in bytes.

    head     status line and headers, without the empty line
    returns  the value of Content-Length; 0 for 204 and 304, which carry none
    faults   WireError without Content-Length (chunked answers are not read) or with one that is no number
    source   RFC 9112 section 6.3
    """
    start = head.find(b"\r\nContent-Length: ")
    if start < 0:
        start = head.lower().find(b"\r\ncontent-length: ")
    if start < 0:
        if head[STATUS_START:STATUS_END] in (b"204", b"304"):
            return 0
        raise WireError("the answer has no Content-Length")
    start += len(b"\r\nContent-Length: ")
    end = head.find(b"\r\n", start)
    digits = head[start:] if end < 0 else head[start:end]
    try:
        return int(digits)
    except ValueError:
        raise WireError("Content-Length is not a number") from None


class AnswerReader:
    """Reads one answer at a time from pieces of any size.

    After `feed` has returned a status, `body` holds the body when `keep_body` was set before, and
    `closes` says whether the server announced that it closes the connection.
    """

    __slots__ = ("_pieces", "_total_bytes", "body", "closes", "keep_body")

    def __init__(self) -> None:
        """Start with nothing read and bodies not kept."""
        self._pieces = bytearray()
        self._total_bytes = 0
        self.body = b""
        self.closes = False
        self.keep_body = False

    def feed(self, data: bytes) -> int:
        """Take the next piece.

        returns  the status (100-599) when the answer is complete, 0 when more is needed
        faults   WireError when the bytes are not an HTTP/1.1 answer or go beyond the end of one
        """
        if self._pieces:
            self._pieces += data
            if len(self._pieces) < self._total_bytes:
                return 0
            data = bytes(self._pieces)
        head_end = data.find(HEAD_END)
        if head_end < 0:
            if len(data) > HEAD_BYTES_MAX:
                raise WireError("the head of the answer does not end")
            self._hold(data, 0)
            return 0
        head = data[:head_end]
        total_bytes = head_end + len(HEAD_END) + body_length(head)
        if len(data) < total_bytes:
            self._hold(data, total_bytes)
            return 0
        if len(data) > total_bytes:
            raise WireError("bytes beyond the end of the answer")
        if self._pieces:
            self._pieces = bytearray()
            self._total_bytes = 0
        if not head.startswith(b"HTTP/1.1 ") or not head[STATUS_START:STATUS_END].isdigit():
            raise WireError("not an HTTP/1.1 answer")
        self.closes = b"onnection: close" in head
        self.body = data[head_end + len(HEAD_END) :] if self.keep_body else b""
        return int(head[STATUS_START:STATUS_END])

    def _hold(self, data: bytes, total_bytes: int) -> None:
        if not self._pieces:
            self._pieces += data
        self._total_bytes = total_bytes


def request_head(method: str, path: str, *, host: str, token: str, idempotent: bool, body: bool) -> bytes:
    """Head of a request as a template for the bytes `%` operator.

    returns  bytes in which `%s` stands for the Idempotency-Key (when `idempotent`) and then `%d` for the
             length of the body (when `body`), in that order; it ends with the empty line
    faults   ValueError when a part holds a percent sign or a line break, which would break the template
    """
    if any(char in part for part in (path, host, token) for char in "%\r\n"):
        raise ValueError("percent signs and line breaks cannot stand in a request template")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if idempotent:
        lines.append("Idempotency-Key: %s")
    if body:
        lines += ["Content-Type: application/json", "Content-Length: %d"]
    return "\r\n".join(lines).encode("ascii") + HEAD_END
