"""All keys in memory: a check is one SHA-256 and one dictionary lookup, without any I/O.

No secret is compared with another: the presented text is hashed first, and what a lookup by that hash could betray
by its time is the hash of what the caller sent himself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from app.access.key_text import is_well_formed, key_hash
from app.access.scope import ROOT, Key
from app.clock import now_ms
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Seconds that known keys stay valid while Postgres cannot confirm them. While it is away no money can move, so that
# this is about lookups and assignments, which should outlive a restart of Postgres or a failover. A quarter of an hour
# bounds how long a replica that alone is cut off honours a key that was revoked meanwhile. Then callers get 503, which
# says that the server is at fault, not the key; the root key goes on.
UNCONFIRMED_MAX_S: Final = 900.0

Reason = Literal["missing", "malformed", "unknown", "revoked", "expired", "unconfirmed"]


class Denial(NamedTuple):
    """Why a request was not let in; `key_id` if the key is known."""

    reason: Reason
    key_id: str | None = None


class KeyTable:
    """The keys of this process, replaced as a whole when they change, and when each was last used."""

    def __init__(
        self,
        root_key: str,
        *,
        wall_ms: Callable[[], int] = now_ms,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know the root key from the start; every other key once `replace` was called."""
        self._root_hash = key_hash(root_key)
        self._wall_ms = wall_ms
        self._elapsed_s = elapsed_s
        self._keys: dict[bytes, Key] = {self._root_hash: ROOT}
        self._confirmed_s = -UNCONFIRMED_MAX_S - 1.0
        self._loaded = False
        self._used_ms: dict[str, int] = {}

    def __len__(self) -> int:
        """How many keys are known, the root key included."""
        return len(self._keys)

    def replace(self, keys: Mapping[bytes, Key]) -> None:
        """Take these keys, by hash, for all there are. The root key stays, whatever they say."""
        self._keys = {**keys, self._root_hash: ROOT}
        self._loaded = True
        self.confirm()

    def confirm(self) -> None:
        """Note that Postgres has just confirmed the keys."""
        if self._loaded:
            self._confirmed_s = self._elapsed_s()

    @property
    def unconfirmed_s(self) -> float:
        """Seconds since Postgres confirmed the keys; infinite before the first time."""
        return self._elapsed_s() - self._confirmed_s if self._loaded else float("inf")

    def check(self, authorization: str | None) -> Key | Denial:
        """Return the key of an Authorization header, or why there is none."""
        if authorization is None or authorization[:7].lower() != "bearer ":
            return Denial("missing")
        text = authorization[7:]
        key = self._keys.get(key_hash(text))
        if key is ROOT:
            return ROOT
        if key is not None and key.revoked_at_ms is not None:
            return Denial("revoked", key.key_id)
        if key is None and not is_well_formed(text):
            return Denial("malformed")
        if self._elapsed_s() - self._confirmed_s > UNCONFIRMED_MAX_S:
            return Denial("unconfirmed", key.key_id if key is not None else None)
        if key is None:
            return Denial("unknown")
        now = self._wall_ms()
        if key.expires_at_ms is not None and key.expires_at_ms <= now:
            return Denial("expired", key.key_id)
        self._used_ms[key.key_id] = now
        return key

    def take_used(self) -> dict[str, int]:
        """Return when each key was last used, Unix ms, since the last call, and forget it."""
        used, self._used_ms = self._used_ms, {}
        return used

    def put_back_used(self, used: Mapping[str, int]) -> None:
        """Return what could not be written; what has been used since wins."""
        self._used_ms = {**used, **self._used_ms}


def problem_of(denial: Denial) -> Problem:
    """Return the answer to a denial. 401 is the same for every reason, so that nobody can probe for keys."""
    if denial.reason == "unconfirmed":
        return Problem(
            503, "unavailable", "The keys cannot be confirmed: Postgres is out of reach.", headers={"Retry-After": "1"}
        )
    return Problem(
        401, "unauthorized", "Send a valid key as Authorization: Bearer <key>.", headers={"WWW-Authenticate": "Bearer"}
    )
