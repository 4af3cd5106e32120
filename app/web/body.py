"""From the bytes of a request to a typed struct: the edge of trust.

`Body(Struct)` is made once per route and read once per request. What it lets through is JSON as RFC 8259 and I-JSON
(RFC 7493) say it, once: no duplicate keys, no NaN, no lone surrogates, and exactly the fields and types of the struct.
"""

import asyncio
import json
import re
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec
from aiohttp import web
from msgspec import inspect

from app.privacy.guard import REFUSED_DETAIL, CardFound, Guard
from app.web.fields import DEPTH_MAX, Metadata, decode_custom, deeper_than
from app.web.problems import FieldError, Problem
from app.web.request import Request

T = TypeVar("T", bound=msgspec.Struct)

# an ordinary call is below 5 KiB with the largest metadata; lists ask for more.
BODY_MAX_BYTES: Final = 64 * 1024
# 64 KiB at 56 kbit/s; a client slower than that holds a connection for nothing.
BODY_READ_TIMEOUT_S: Final = 10.0
PLAIN_TYPES: Final = (
    inspect.StrType,
    inspect.IntType,
    inspect.FloatType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.DateTimeType,
    inspect.UUIDType,
)

_path = re.compile(r" - at `(?:key in )?\$(.*)`\Z", re.DOTALL)
_step = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+)\]")
_field = re.compile(r"Object (missing required|contains unknown) field `(.*)`\Z", re.DOTALL)
_plain_key = re.compile(r"(?!.*\d{7})[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_safe_detail = re.compile(r"Expected [^'\"]*(?:matching regex '.*')?\Z|(?:Integer value|Number) out of range\Z")
_charset = re.compile(r'\s*charset\s*=\s*"?utf-?8"?\s*\Z', re.IGNORECASE)


def _malformed(detail: str) -> Problem:
    return Problem(400, "malformed_json", detail)


def _refuse_constant(_: str) -> NoReturn:
    raise _malformed("NaN and Infinity are not JSON.")


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(pairs) > 1 and len({key for key, _ in pairs}) != len(pairs):
        raise _malformed("An object has the same key twice.")


# Values are not built: `len` takes the text of a number in place of int(), which is quadratic in its digits.
_pairs = json.JSONDecoder(object_pairs_hook=_unique, parse_int=len, parse_float=len, parse_constant=_refuse_constant)


def check_json(data: bytes) -> None:
    """Raise Problem 400 `malformed_json` unless `data` is one JSON text that I-JSON allows, at most DEPTH_MAX levels deep.

    Refused: bad syntax, bad UTF-8, trailing data, NaN and Infinity, lone surrogates, duplicate keys at any depth (compared
    after unescaping), depth. Linear in the size; a deep text ends at DEPTH_MAX. Source: RFC 7493.
    """
    if deeper_than(data, DEPTH_MAX):
        raise _malformed(f"The body is nested deeper than {DEPTH_MAX} levels.")
    try:
        msgspec.json.decode(data)
    except msgspec.ValidationError:
        # A number beyond what a float or a Python integer takes: valid JSON, refused by its type elsewhere.
        pass
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _malformed("The body is not one JSON text in UTF-8.") from None
    try:
        _pairs.decode(data.decode())
    except (ValueError, RecursionError):
        raise _malformed("The body is not one JSON text in UTF-8.") from None


def field_errors(error: msgspec.ValidationError) -> tuple[FieldError, ...]:
    """The wrong place that msgspec names, with a text that holds no input value.

    An unknown key is named only if it looks like a field name.
    """
    text = str(error)
    pointer = ""
    place = _path.search(text)
    if place is not None:
        text = text[: place.start()]
        at = 0
        for step in _step.finditer(place.group(1)):
            if step.start() != at:
                break
            pointer += f"/{step.group(1) or step.group(2)}"
            at = step.end()
    field = _field.match(text)
    if field is not None:
        required = field.group(1) == "missing required"
        if required or _plain_key.match(field.group(2)):
            pointer += "/" + field.group(2)
        return (FieldError(pointer, "Required field is missing" if required else "Unknown field"),)
    detail = text.replace("`", "") if _safe_detail.match(text) else "Value is not one of those allowed here"
    return (FieldError(pointer, detail),)


def card_refused(pointer: str) -> Problem:
    """The 422 for a name, id or key that holds a card number."""
    return Problem(422, "invalid_request", "The body has invalid fields.", errors=(FieldError(pointer, REFUSED_DETAIL),))


def check_media_type(request: Request) -> None:
    """Raise Problem 415 unless the body is declared as application/json in UTF-8 without a content coding."""
    headers = request.headers
    declared = headers.get("content-type", "")
    if declared != "application/json":
        essence, _, parameters = declared.partition(";")
        charsets = [part for part in parameters.split(";") if part.strip().lower().startswith("charset")]
        if essence.strip().lower() != "application/json" or not all(map(_charset.match, charsets)):
            raise Problem(415, "unsupported_media_type", "Content-Type must be application/json, in UTF-8.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Content-Encoding is not supported.")


def _too_large(limit_bytes: int) -> Problem:
    return Problem(413, "payload_too_large", f"The body is larger than {limit_bytes} bytes.", close=True)


async def _gather(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    """The body of a request that came through aiohttp, chunk by chunk, within the limits."""
    source = request.source
    if source is None:
        raise AssertionError("a request has its body or a source to read it from")
    content = source.content
    if content.is_eof():
        return content.read_nowait()
    declared = source.content_length
    if declared is not None and declared > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await content.readany():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            408,
            "request_timeout",
            f"The body did not arrive within {timeout_s:g} seconds.",
            close=True,
        ) from None
    except web.RequestPayloadError as error:
        if request.gone:
            raise ConnectionResetError("the client left before its body was complete") from error
        raise Problem(400, "malformed_http", "The body is framed wrongly.", close=True) from None
    return b"".join(chunks)


async def read_json(request: Request, limit_bytes: int = BODY_MAX_BYTES) -> Any:
    """The body as JSON of any shape, whatever media type it is declared as: for clients of other people's APIs.

    refuses  408 `request_timeout`, 413 `payload_too_large`, 400 `malformed_json`
    faults   ConnectionError when the client left before the body was complete
    """
    data = request.body
    if data is None:
        data = await _gather(request, limit_bytes, BODY_READ_TIMEOUT_S)
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    check_json(data)
    return msgspec.json.decode(data)


class Body(Generic[T]):
    """Reads and checks the body of one route.

    struct_type     a struct below `Input`; TypeError here if it, or a struct in it, could hide a duplicate key
    limit_bytes     largest body
    timeout_s       longest wait for the whole body
    optional        an absent body counts as `{}`

    Card numbers do not pass: see `app.privacy.guard`.
    """

    def __init__(
        self,
        struct_type: type[T],
        limit_bytes: int = BODY_MAX_BYTES,
        *,
        timeout_s: float = BODY_READ_TIMEOUT_S,
        optional: bool = False,
    ) -> None:
        """Prepare the decoder; once per route."""
        _check_countable(inspect.type_info(struct_type))
        self.struct_type = struct_type
        self.limit_bytes = limit_bytes
        self.timeout_s = timeout_s
        self.optional = optional
        self.decoder = msgspec.json.Decoder(struct_type, strict=True, dec_hook=decode_custom)
        self.encode = msgspec.json.Encoder().encode
        self.guard = Guard(struct_type)

    async def read(self, request: Request) -> T:
        """The decoded body.

        refuses  408 `request_timeout`, 413 `payload_too_large`, 415 `unsupported_media_type`,
                 400 `malformed_json`, 422 `invalid_request`, in this order
        faults   ConnectionError when the client left before the body was complete
        """
        return self.decode(await self.text(request))

    async def text(self, request: Request) -> bytes:
        """The body before it is decoded; refuses what `read` refuses up to 415."""
        data = request.body
        if data is None:
            data = await _gather(request, self.limit_bytes, self.timeout_s)
        return self._checked(request, data)

    def take(self, request: Request) -> T:
        """The decoded body of a request that is whole; refuses what `read` refuses, but for 408."""
        if request.body is None:
            raise AssertionError("the body has not been read yet")
        return self.decode(self._checked(request, request.body))

    def _checked(self, request: Request, data: bytes) -> bytes:
        if len(data) > self.limit_bytes:
            raise _too_large(self.limit_bytes)
        if not data and self.optional:
            return b"{}"  # of whatever type: several clients name one for a body that is not there
        if not data and "content-type" not in request.headers:
            raise _malformed("A JSON body is required.")
        check_media_type(request)
        return data

    def decode(self, data: bytes) -> T:
        """A struct from JSON text without card numbers; Problem 400 or 422. Pure."""
        value = self.parse(data)
        try:
            self.guard.clean(value)
        except CardFound as found:
            raise card_refused(found.pointer) from None
        return value

    def parse(self, data: bytes) -> T:
        """A struct from JSON text that has not been searched for card numbers; Problem 400 or 422. Pure.

        Quotation marks find duplicate keys: without a backslash in the text, a text without duplicates has at
        least as many as its struct encoded again, and every duplicate adds two or more. Where the counts
        differ, a full check decides; it costs about twenty times more and is rarely needed.
        """
        try:
            value = self.decoder.decode(data)
        except msgspec.ValidationError as error:
            check_json(data)
            raise Problem(422, "invalid_request", "The body has invalid fields.", errors=field_errors(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            check_json(data)
            raise _malformed("The body is not one JSON text in UTF-8.") from None
        if b"\\" in data or data.count(b'"') != self.encode(value).count(b'"'):
            check_json(data)
        return value


def _check_struct(kind: inspect.StructType) -> None:
    """`_check_countable` for one struct; of several in a union it comes here without its tag."""
    config: Any = kind.cls.__struct_config__
    name = kind.cls.__name__
    if not (config.forbid_unknown_fields and config.omit_defaults) or config.array_like:
        raise TypeError(f"{name} must inherit app.web.fields.Input")
    if kind.tag is not None:
        raise TypeError(f"{name} has a tag and must be one of two or more in a union")
    for field in kind.fields:
        if field.default_factory not in {msgspec.NODEFAULT, list, dict, set}:
            raise TypeError(f"{name}.{field.name}: a default that is made cannot be left out")
        _check_countable(field.type)


def _check_countable(kind: inspect.Type) -> None:
    """TypeError unless counting quotation marks finds every duplicate key in texts of this type.

    The encoded value must never have more quotation marks than a text that it was decoded from: no defaults
    written out, no tag filled in, no number written as a string, no text kept unread.
    """
    match kind:
        case inspect.StructType():
            _check_struct(kind)
        case inspect.UnionType(types=types):
            structs = [part for part in types if isinstance(part, inspect.StructType)]
            for part in types:
                tagged = len(structs) > 1 and isinstance(part, inspect.StructType)
                _check_countable(msgspec.structs.replace(part, tag=None) if tagged else part)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            _check_countable(item)
        case inspect.DictType(key_type=key, value_type=item):
            _check_countable(key)
            _check_countable(item)
        case inspect.CustomType(cls=cls) if issubclass(cls, Metadata):
            pass
        case inspect.Metadata(type=inner):
            _check_countable(inner)
        case inspect.Type() if isinstance(kind, PLAIN_TYPES):
            pass
        case _:
            raise TypeError(f"{type(kind).__name__} cannot be a field of a request body")
