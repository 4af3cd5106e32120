"""Signatures by the Standard Webhooks specification 1.0.0, scheme v1: HMAC-SHA256. Pure.

    signed content      = webhook-id + "." + webhook-timestamp + "." + body
    webhook-signature   = "v1," + base64(HMAC-SHA256(secret, signed content)), several separated by a space
    secret on the wire  = "whsec_" + base64(24 to 64 bytes)

An endpoint's secret is not stored: it is derived from a key of the server, the endpoint's id and a version, so that a
copy of the database lets nobody sign. The endpoint remembers which key that was, because keys of the server change.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.settings import Settings

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the public beginning of every secret
SERVER_KEY_MIN_BYTES: Final = 16  # shorter could be guessed from one signature


class SecretUnknown(Exception):
    """The key that an endpoint's secret was derived from is not among the keys of this server."""


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return one signature, `v1,...`, of a message at a time in Unix seconds."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, content, "sha256")).decode()


def signed_fields(secrets: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the three header fields of a message, signed by each secret."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(sign(secret, message_id, timestamp_s, body) for secret in secrets),
    }


def secret_text(secret: bytes) -> str:
    """Return a secret as it is shown to the endpoint's owner."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


class SigningKeys:
    """The server's keys from which secrets are derived: the current one, and earlier ones that endpoints still have."""

    def __init__(self, current: bytes, earlier: Sequence[bytes] = ()) -> None:
        """Raises ValueError for a key of less than SERVER_KEY_MIN_BYTES."""
        if any(len(key) < SERVER_KEY_MIN_BYTES for key in (current, *earlier)):
            raise ValueError(f"a webhook key needs at least {SERVER_KEY_MIN_BYTES} bytes")
        self._keys = {_key_id(key): key for key in (*earlier, current)}
        self.current_id = _key_id(current)

    def __repr__(self) -> str:
        """Show ids, never keys."""
        return f"SigningKeys({', '.join(self._keys)})"

    def secret(self, key_id: str, endpoint_id: str, version: int) -> bytes:
        """Return an endpoint's secret: 32 bytes. Raises SecretUnknown."""
        key = self._keys.get(key_id)
        if key is None:
            raise SecretUnknown(f"no webhook key {key_id}: give it as an earlier one, or rotate the endpoint's secret")
        return hmac.digest(key, f"shieldx webhook secret v1\n{endpoint_id}\n{version}".encode(), "sha256")

    def secrets(self, key_id: str, endpoint_id: str, version: int, *, old_signs: bool) -> list[bytes]:
        """Return the secrets that sign: the current one, and the one before it during a rotation."""
        versions = (version, version - 1) if old_signs and version > 1 else (version,)
        return [self.secret(key_id, endpoint_id, number) for number in versions]


def signing_keys(settings: Settings, root: str) -> SigningKeys:
    """Return the keys that are set; without one, one derived from the root key (RFC 2104)."""
    derived = hmac.digest(root.encode(), b"shieldx webhooks v1", "sha256")
    current = settings.webhook_key.encode() or derived
    earlier = [settings.webhook_old_key.encode()] if settings.webhook_old_key else []
    # Endpoints that were made before a key was set go on with the derived one.
    return SigningKeys(current, [*earlier, *([derived] if settings.webhook_key else [])])


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"shieldx webhook key id v1\n" + key).hexdigest()[:16]
