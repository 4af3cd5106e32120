"""Structured log lines on stderr, one JSON object a line, without secrets.

Every string of a line passes `redact`; card numbers, verification codes, cardholder names, expiry dates, IP addresses and
user agents are masked by `app.privacy`. A line that belongs to a request (it has `request_id`) shows the classes and places
of its exceptions but not their texts: those may quote what the client sent.
"""

import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from app.privacy.cards import mask, mask_text
from app.privacy.fields import kind_of
from app.web.problems import JsonValue

HIDDEN: Final = "***"
FRAMES_MAX: Final = 30  # innermost frames of one exception; a recursion error has a thousand alike.
CHAIN_MAX: Final = 8  # exceptions of one cause chain.
SECRET_NAMES: Final = frozenset(
    {"authorization", "idempotency_key", "idempotency-key", "key", "password", "root_key", "secret", "token"}
)

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_url_password = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:@/]*:)[^\s\"'<>]*@")
_header = re.compile(
    r"((?:proxy-)?authorization|idempotency[-_]key)(b?['\"]?\s*[:=,]\s*(?:b?['\"])?)[^'\"\r\n]+",
    re.IGNORECASE,
)
_bearer = re.compile(r"\b(bearer|basic)\s+[^\s'\",;]+", re.IGNORECASE)
_token = re.compile(r"shx_[A-Za-z0-9_-]+")


class LineBudget:
    """How many lines of one kind a second may bring: a line costs as much as the request that it tells of."""

    def __init__(self, lines_per_s: int) -> None:
        """Begin with a whole second's."""
        self._lines_per_s = lines_per_s
        self._second = 0
        self._written = 0
        self._left_out = 0

    def take(self, now_s: float) -> int | None:
        """Return None when no further line may be written in this second, else how many were left out since the last one."""
        second = int(now_s)
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= self._lines_per_s:
            self._left_out += 1
            return None
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def redact(text: str) -> str:
    """`text` without API keys, Authorization and Idempotency-Key values, passwords of URLs and payment data. Idempotent."""
    text = _url_password.sub(rf"\1{HIDDEN}@", text)
    text = _header.sub(rf"\1\2{HIDDEN}", text)
    text = _bearer.sub(rf"\1 {HIDDEN}", text)
    return mask_text(_token.sub(f"shx_{HIDDEN}", text))


def _plain(value: object) -> JsonValue:
    if isinstance(value, str):
        return redact(value)
    masked = mask(value)
    return masked if masked is None or isinstance(masked, bool | int | float) else redact(str(masked))


def _named(name: str, value: object) -> dict[str, JsonValue]:
    """A field of a line, masked by its name where that says what it holds; nothing for a verification code."""
    if name.lower() in SECRET_NAMES:
        return {name: HIDDEN}
    if kind_of(name) is None:
        return {name: _plain(value)}
    shown: dict[str, object] = mask({name: value})
    return {left: _plain(masked) for left, masked in shown.items()}


def _exceptions(error: BaseException, *, texts: bool) -> list[JsonValue]:
    """The chain of an exception, outermost first: class, innermost frames, and the text if `texts`."""
    chain: list[JsonValue] = []
    link: BaseException | None = error
    while link is not None and len(chain) < CHAIN_MAX:
        frames = traceback.extract_tb(link.__traceback__)[-FRAMES_MAX:]
        entry: dict[str, JsonValue] = {
            "type": type(link).__qualname__,
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        }
        if texts:
            entry["text"] = redact(str(link))
        chain.append(entry)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


class JsonLines(logging.Formatter):
    """One record to one JSON line: at, level, logger, message, request_id, extra fields, exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, JsonValue] = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD:
                line.update(_named(name, value))
        if record.exc_info and record.exc_info[1] is not None:
            line["exceptions"] = _exceptions(record.exc_info[1], texts="request_id" not in record.__dict__)
        if record.stack_info:
            line["stack"] = redact(record.stack_info)
        return msgspec.json.encode(line).decode()


def configure_logging(level: str, stream: TextIO | None = None) -> logging.Handler:
    """Send all logging of the process to `stream` (stderr) as JSON lines, from `level` on.

    level    debug, info, warning, error or critical
    returns  the one handler of the root logger
    faults   ValueError for another level
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or level.upper() == "NOTSET":
        message = "level must be debug, info, warning, error or critical"
        raise ValueError(message)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    logging.captureWarnings(capture=True)
    return handler
