"""Where a message may be sent: rules for URLs, and for every address that a name turns out to have. Pure.

A URL is chosen by a customer and fetched from inside the operator's network, so it must not reach what only the inside
can reach (OWASP API7:2023). A name is judged when it is given, and its addresses again at every connection, because
what a name points to can change in between.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from app.settings import Settings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_MAX: Final = 2_000  # characters; longer ones do not pass common proxies
PORTS: Final = frozenset({443, 8443})  # by default: nothing that is not meant to be a web server

_V6_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out as global unicast
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Public by their numbers, but not places of others: transition and special-purpose blocks through which an inner
# address can be reached or which lead nowhere (RFC 6890, RFC 7723, RFC 9637), and the one cloud metadata service that
# has a public address.
_CLOSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24",
        "2001::/23", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
_host = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\Z")
_numeric = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")


class TargetRefused(Exception):
    """The URL or an address behind it is not one that messages are sent to; the text says why, in words of ours."""


class TargetRules(NamedTuple):
    """What is allowed beyond public addresses over https. Each is for closed networks and tests.

    allow_http  plain http too
    ports       the only ports, None for any
    networks    networks that are allowed although they are not public
    """

    allow_http: bool = False
    ports: frozenset[int] | None = PORTS
    networks: tuple[IPNetwork, ...] = ()


def rules_of(settings: Settings) -> TargetRules:
    """Return the rules that the operator has set."""
    ports = None if 0 in settings.webhook_ports else frozenset(settings.webhook_ports)
    networks = tuple(ipaddress.ip_network(text) for text in settings.webhook_allow_networks)
    return TargetRules(settings.webhook_allow_http, ports, networks)


def check_address(address: IPAddress, rules: TargetRules) -> None:
    """Raise TargetRefused unless messages may be sent to an address."""
    inner: IPAddress = address
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise TargetRefused("The address is bound to a link.")
        if address.ipv4_mapped is not None:
            inner = address.ipv4_mapped
        elif address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if any(inner.version == network.version and inner in network for network in rules.networks):
        return
    public = inner.is_global and not inner.is_multicast and not inner.is_reserved and not inner.is_unspecified
    if isinstance(inner, ipaddress.IPv6Address):
        public = public and inner in _V6_GLOBAL
    if not public or any(inner.version == network.version and inner in network for network in _CLOSED):
        raise TargetRefused("The address is not a public one.")


def check_url(url: str, rules: TargetRules) -> None:
    """Raise TargetRefused unless the URL may be an endpoint's. Its name is not looked up here."""
    if len(url) > URL_MAX or not url.isascii() or any(letter <= " " or letter in '\\"<>^`{|}\x7f' for letter in url):
        raise TargetRefused(f"Expected a URL of at most {URL_MAX} printable ASCII characters.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise TargetRefused("Expected a URL.") from None
    if parts.scheme not in ({"https", "http"} if rules.allow_http else {"https"}):
        raise TargetRefused("Expected an https URL.")
    if "@" in parts.netloc or "#" in url:
        raise TargetRefused("Expected a URL without user, password and fragment.")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    if rules.ports is not None and port not in rules.ports | ({80} if rules.allow_http else set()):
        raise TargetRefused("The port is not one that messages are sent to.")
    _check_host(parts.netloc, (parts.hostname or "").rstrip("."), rules)


def _check_host(netloc: str, host: str, rules: TargetRules) -> None:
    if netloc.startswith("[") or _numeric.match(host.rpartition(".")[2]):
        # Only the usual forms: 127.1, 0x7f.0.0.1 or 2130706433 are addresses to some resolvers and names to others.
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise TargetRefused("Expected a name, or an address in its usual form.") from None
        check_address(address, rules)
    elif _host.match(host) is None:
        raise TargetRefused("Expected the name of a host.")
    elif not rules.networks and ("." not in host or host.endswith((".localhost", ".local", ".internal"))):
        raise TargetRefused("The name is not a public one.")
