"""Reads the body of a batch, up to 16 MiB, while other requests go on.

A body that is no larger than that of any call is decoded at once. A larger one is decoded operation by operation, and
refused at the first fault, so that no text holds the event loop for longer than its largest operation takes. Either way
the search for card numbers runs in slices, within a budget: text can be built so that searching it takes long.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Final, get_args

import msgspec

from app.credits.wire import BATCH_BODY_MAX_BYTES, OPERATIONS_MAX, Batch, BatchOperation
from app.privacy.guard import CardFound, Guard
from app.web.body import BODY_MAX_BYTES, Body, card_refused, check_json, field_errors
from app.web.fields import decode_custom
from app.web.problems import FieldError, Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.web.request import Request

SLICE_S: Final = 0.005  # work between two turns of the event loop; one operation more may be added to it
# Processor time of one batch. 10,000 operations take 0.1 s, with 1 KiB of metadata full of UUIDs each 3.5 s.
READ_CPU_MAX_S: Final = 8.0
PROBE_CHARACTERS: Final = 2_048  # most operations are shorter, so that one cut finds their end
OPERATION_MAX_CHARACTERS: Final = BODY_MAX_BYTES  # of one operation: as for a call of its own

# White space is taken possessively, so a run of it is read once; 16 MiB of it would hold the event loop for 50 ms.
_SPACE: Final = rf"[ \t\r\n]{{0,{BODY_MAX_BYTES}}}+"
_head = re.compile(rf'{_SPACE}\{{{_SPACE}"operations"{_SPACE}:{_SPACE}\[{_SPACE}')
_between = re.compile(rf"{_SPACE}(?:,{_SPACE}|(\]){_SPACE}\}}{_SPACE}\Z)")
# Finds where a value ends; builds no numbers, since the text of one may be long. Its findings are checked again.
_scan: Final = json.JSONDecoder(parse_int=len, parse_float=len, strict=False).raw_decode
_operation: Final = msgspec.json.Decoder(BatchOperation, strict=True, dec_hook=decode_custom)
_encode: Final = msgspec.json.Encoder().encode
_guards: Final = {kind: Guard(kind) for kind in get_args(BatchOperation)}


class Slices:
    """Tells when it is time to give the event loop a turn, and how much processor time has been used."""

    def __init__(self) -> None:
        """The first slice begins now."""
        self._until_s = time.perf_counter() + SLICE_S
        self._since_s = time.thread_time()
        self.used_s = 0.0

    async def pause(self) -> None:
        """Give the loop a turn if the slice is over."""
        if time.perf_counter() >= self._until_s:
            self.used_s += time.thread_time() - self._since_s
            await asyncio.sleep(0)
            self._until_s, self._since_s = time.perf_counter() + SLICE_S, time.thread_time()


class BatchBody:
    """The body of POST /v1/credits/batch. Batches are read one after another: their slices must not add up."""

    def __init__(self) -> None:
        """One for a process."""
        self._body = Body(Batch, limit_bytes=BATCH_BODY_MAX_BYTES)
        self._turn = asyncio.Lock()

    async def read(self, request: Request) -> list[BatchOperation]:
        """Return the operations, without card numbers. Refuses what `Body.read` refuses, and 422 beyond READ_CPU_MAX_S."""
        return await self.decode(await self._body.text(request))

    async def decode(self, data: bytes) -> list[BatchOperation]:
        """Return the operations of JSON text; Problem 400 or 422."""
        async with self._turn:
            slices = Slices()
            found = iter(self._body.parse(data).operations) if len(data) <= BODY_MAX_BYTES else _operations(data)
            operations: list[BatchOperation] = []
            for operation in found:
                try:
                    _guards[type(operation)].clean(operation)
                except CardFound as card:
                    raise card_refused(f"/operations/{len(operations)}{card.pointer}") from None
                operations.append(operation)
                if slices.used_s > READ_CPU_MAX_S:
                    raise invalid("/operations", "Expected less text that resembles card numbers; send smaller batches")
                await slices.pause()
            return operations


def _malformed() -> Problem:
    return Problem(400, "malformed_json", "The body is not one JSON text in UTF-8.")


def _operations(data: bytes) -> Iterator[BatchOperation]:
    """Yield the operations of a large body one by one. Raises Problem at the first fault."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _malformed() from None
    head = _head.match(text)
    if head is None:
        raise invalid("", 'Expected an object with the field "operations" alone')
    at, number = head.end(), 0
    while True:
        end = _end_of_value(text, at, number)
        if number == OPERATIONS_MAX:
            raise invalid("/operations", f"Expected at most {OPERATIONS_MAX} operations")
        yield _parse(text[at:end].encode(), number)
        number += 1
        between = _between.match(text, end)
        if between is None:
            raise _malformed()
        if between[1] is not None:
            return
        at = between.end()


def _end_of_value(text: str, at: int, number: int) -> int:
    for characters in (PROBE_CHARACTERS, OPERATION_MAX_CHARACTERS):
        try:
            length: int = _scan(text[at : at + characters])[1]
        except (ValueError, RecursionError):
            continue
        return at + length
    if len(text) - at > OPERATION_MAX_CHARACTERS:
        pointer = f"/operations/{number}"
        raise invalid(pointer, f"Expected one JSON value of at most {OPERATION_MAX_CHARACTERS} characters")
    raise _malformed()


def _parse(data: bytes, number: int) -> BatchOperation:
    """Return one operation. As `Body.parse`, with pointers that begin at the batch."""
    try:
        operation: BatchOperation = _operation.decode(data)
    except msgspec.ValidationError as error:
        check_json(data)
        errors = tuple(FieldError(f"/operations/{number}{e.pointer}", e.detail) for e in field_errors(error))
        raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _malformed() from None
    # An operation names its verb in `op`, which encoding it again writes as well: see `Body.parse`.
    if b"\\" in data or data.count(b'"') != _encode(operation).count(b'"'):
        check_json(data)
    return operation
