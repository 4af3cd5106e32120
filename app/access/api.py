"""/v1/keys over HTTP: routes only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from app.access import calls
from app.access.calls import KeyId, KeyPage, KeyView, MadeKey, NewKey, RotatedKey, Rotation
from app.access.key_text import ID_PATTERN
from app.access.matrix import RIGHTS
from app.access.opening import Access
from app.access.scope import Key
from app.web.body import Body
from app.web.fields import Cursor, Limit
from app.web.problems import invalid, starting
from app.web.routes import Handled, Route, cursor, json_answer, limit

if TYPE_CHECKING:
    from app.access.store import KeyStore
    from app.web.request import Request

ACCESS: Final = web.AppKey("access", Access)

_NEW_KEY: Final = Body(NewKey)
_ROTATION: Final = Body(Rotation, optional=True)
_key_id = re.compile(ID_PATTERN)


def key_of(request: Request) -> Key:
    """Return the key that calls a closed route."""
    if not isinstance(request.principal, Key):
        raise AssertionError("the edge lets no request without a key into a closed route")
    return request.principal


def _store(request: Request) -> KeyStore:
    store = request.app[ACCESS].store
    if store is None:
        raise starting()
    return store


def _answer(value: msgspec.Struct, status: int = 200) -> Handled:
    return json_answer(msgspec.json.encode(value), status=status)


async def create_key(request: Request) -> Handled:
    """POST /v1/keys."""
    body = await _NEW_KEY.read(request)
    return _answer(await calls.create(body, key_of(request), _store(request)), 201)


async def list_keys(request: Request) -> Handled:
    """GET /v1/keys."""
    count, after = limit(request), cursor(request) or ""
    if after and _key_id.match(after) is None:
        raise invalid("?cursor", "Expected the next_cursor of the page before")
    return _answer(KeyPage(*await calls.list_keys(key_of(request), _store(request), after, count)))


async def read_key(request: Request) -> Handled:
    """GET /v1/keys/{key_id}."""
    return _answer(await calls.read(request.match_info["key_id"], key_of(request), _store(request)))


async def revoke_key(request: Request) -> Handled:
    """DELETE /v1/keys/{key_id}."""
    return _answer(await calls.revoke(request.match_info["key_id"], key_of(request), _store(request)))


async def rotate_key(request: Request) -> Handled:
    """POST /v1/keys/{key_id}/rotate."""
    body = await _ROTATION.read(request)
    return _answer(await calls.rotate(request.match_info["key_id"], body, key_of(request), _store(request)), 201)


_PATH: Final[dict[str, Any]] = {"key_id": KeyId}
_AWAY: Final = (503, "unavailable")
_NO_KEY: Final = (404, "no_key")

KEY_ROUTES: Final = (
    Route(
        "POST", "/v1/keys", create_key, summary="Make a key; it is shown this once", tag="keys", body=NewKey,
        answers={201: MadeKey}, roles=RIGHTS["POST", "/v1/keys"].roles, problems=((409, "too_many_keys"), _AWAY),
    ),
    Route(
        "GET", "/v1/keys", list_keys, summary="List keys, ended ones too", tag="keys",
        query={"limit": Limit, "cursor": Cursor}, answers={200: KeyPage}, roles=RIGHTS["GET", "/v1/keys"].roles,
        problems=(_AWAY,),
    ),
    Route(
        "GET", "/v1/keys/{key_id}", read_key, summary="Read a key, without its secret", tag="keys", path_fields=_PATH,
        answers={200: KeyView}, roles=RIGHTS["GET", "/v1/keys/{key_id}"].roles, problems=(_NO_KEY, _AWAY),
    ),
    Route(
        "DELETE", "/v1/keys/{key_id}", revoke_key, summary="End a key on every replica within 2 seconds", tag="keys",
        path_fields=_PATH, answers={200: KeyView}, roles=RIGHTS["DELETE", "/v1/keys/{key_id}"].roles,
        problems=(_NO_KEY, _AWAY),
    ),
    Route(
        "POST", "/v1/keys/{key_id}/rotate", rotate_key, summary="Make the successor of a key; both are valid for a while",
        tag="keys", path_fields=_PATH, body=Rotation, body_optional=True, answers={201: RotatedKey},
        roles=RIGHTS["POST", "/v1/keys/{key_id}/rotate"].roles,
        problems=(_NO_KEY, *((409, f"key_{end}") for end in ("revoked", "expired", "rotated")), _AWAY),
    ),
)  # fmt: skip
