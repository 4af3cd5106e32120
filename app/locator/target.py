"""Where an active check may go: pure rules for the addresses of instances.

A check is sent from inside the operator's network to an address that a client has registered, so it is a tool to reach
what the client cannot (OWASP API7:2023). Instances live on private networks, so those are open; what only the machine of
this server, its link or its cloud can reach is not, unless the operator allows it. A check goes to the host that the
instance itself is registered under, and nowhere else. Names are judged by the addresses that they turn out to have, and
the connection goes to the address that was judged.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")  # RFC 3056: bits 16 to 47 are an IPv4 address
# Metadata services of clouds that are neither link-local nor loopback, and "this network" (RFC 1122).
_CLOSED: Final = tuple(
    ipaddress.ip_network(text) for text in ("0.0.0.0/8", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32")
)
_path = re.compile(r"/[!-~]{0,499}\Z")
_host = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\Z")
_numeric = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\Z")


class CheckRefused(Exception):
    """The check is not one that this server makes; the text says why, in words of ours."""


class CheckTarget(NamedTuple):
    """What a check connects to. `path` is None for TCP alone; `secure` asks for TLS."""

    host: str
    port: int
    path: str | None = None
    secure: bool = False


def is_host(text: str) -> bool:
    """Whether a text is the host of an instance: a name, or an IP address in its usual form, without zone or brackets."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # Forms like 127.1 or 0x7f.0.0.1 are addresses to some resolvers and names to others.
        return _host.match(text) is not None and _numeric.match(text.rpartition(".")[2]) is None
    scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None
    inner = _inner(address)
    return not scoped and not inner.is_multicast and not inner.is_unspecified


def check_address(address: IPAddress, allowed: Sequence[IPNetwork]) -> None:
    """Raise CheckRefused unless checks may connect to an address. `allowed` are networks that the operator opens."""
    inner = _inner(address)
    if any(inner.version == network.version and inner in network for network in allowed):
        return
    special = inner.is_loopback or inner.is_link_local or inner.is_multicast or inner.is_unspecified
    if special or any(inner.version == network.version and inner in network for network in _CLOSED):
        raise CheckRefused(
            "Checks are not sent to loopback, link-local, multicast and metadata addresses, unless SHIELDX_CHECK_NETWORKS"
            " opens them."
        )


def check_literal(host: str, allowed: Sequence[IPNetwork]) -> None:
    """Raise CheckRefused for a host that is an address no check may go to. What a name leads to is seen at each check."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    check_address(address, allowed)


def _inner(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address in _SIX_TO_FOUR:
            return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFF_FFFF)
    return address


def http_target(text: str, host: str, port: int) -> CheckTarget:
    """Return the target of an HTTP check: a path on the instance's own port, or a URL whose host is the instance's.

    Raises CheckRefused.
    """
    if text.startswith("/"):
        if _path.match(text) is None:
            raise CheckRefused("Expected a path of at most 500 printable ASCII characters.")
        return CheckTarget(host, port, text)
    try:
        parts = urlsplit(text)
        own_port = parts.port
    except ValueError:
        raise CheckRefused("Expected a path or a URL.") from None
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc or parts.fragment or own_port == 0:
        raise CheckRefused("Expected a path, or an http or https URL without user and fragment.")
    if not _same_host(parts.hostname or "", host):
        raise CheckRefused("Expected the host of the instance itself.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _path.match(path) is None:
        raise CheckRefused("Expected a path of at most 500 printable ASCII characters.")
    secure = parts.scheme == "https"
    return CheckTarget(host, own_port if own_port is not None else 443 if secure else 80, path, secure)


def tcp_target(text: str, host: str) -> CheckTarget:
    """Return the target of a TCP check: `host:port` or `[host]:port` of the instance's own host. Raises CheckRefused."""
    name, _, digits = text.rpartition(":")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise CheckRefused("Expected host:port.")
    if not _same_host(name.removeprefix("[").removesuffix("]"), host):
        raise CheckRefused("Expected the host of the instance itself.")
    return CheckTarget(host, int(digits))


def _same_host(one: str, other: str) -> bool:
    if one.lower() == other.lower():
        return True
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False
