"""The rate limits of tenants, in memory, and which buckets one request draws from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from app.access.bucket import Bucket, bucket_of
from app.access.scope import Key, Rate

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Setting(msgspec.Struct):
    """`rate_limit` as an account's settings hold it."""

    rate: float
    burst: int


def rate_of(text: str) -> Rate:
    """Return the rate of an account's setting, JSON text. Raises msgspec.DecodeError for anything else."""
    setting = msgspec.json.decode(text, type=_Setting)
    return Rate(setting.rate, setting.burst)


class TenantRates:
    """The tenants that have a limit; replaced as a whole when one changes."""

    def __init__(self) -> None:
        """Know none."""
        self._rates: Mapping[str, Rate] = {}

    def replace(self, rates: Mapping[str, Rate]) -> None:
        """Take these for all there are."""
        self._rates = rates

    def is_free(self, key: Key) -> bool:
        """Whether no request of a key draws from any bucket, whatever its tenant."""
        return key.rate is None and not self._rates

    def buckets(self, key: Key, tenant_id: str | None) -> tuple[Bucket, ...]:
        """Return the buckets of a request: that of its key and that of its tenant, as far as they have a limit."""
        rate = self._rates.get(tenant_id) if tenant_id is not None else None
        if rate is None:
            return () if key.rate is None else (bucket_of("key", key.key_id, key.rate),)
        tenant = bucket_of("tenant", str(tenant_id), rate)
        return (tenant,) if key.rate is None else (bucket_of("key", key.key_id, key.rate), tenant)
