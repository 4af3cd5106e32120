"""Which URLs and addresses messages may be sent to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import Settings
from app.webhooks.target import TargetRefused, TargetRules, check_address, check_url, rules_of

PUBLIC = TargetRules()
CLOSED_V4 = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
]  # fmt: skip
CLOSED_V6 = [
    "::", "::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "100::1", "64:ff9b:1::7f00:1", "2001::1", "2001:db8::1",
    "2001:10::1", "2002:a9fe:a9fe::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
]  # fmt: skip
OPEN = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]


@pytest.mark.parametrize("text", CLOSED_V4 + CLOSED_V6)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    with pytest.raises(TargetRefused):
        check_address(ipaddress.ip_address(text), PUBLIC)


@pytest.mark.parametrize("text", CLOSED_V4)
@pytest.mark.parametrize("form", ["::ffff:{}", "64:ff9b::{}"])
def test_an_inner_address_in_an_outer_form_is_refused(text: str, form: str) -> None:
    with pytest.raises(TargetRefused):
        check_address(ipaddress.ip_address(form.format(text)), PUBLIC)


@pytest.mark.parametrize("text", [*OPEN, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_address_is_allowed(text: str) -> None:
    check_address(ipaddress.ip_address(text), PUBLIC)


@given(st.ip_addresses())
def test_no_rule_lets_in_what_the_library_calls_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    try:
        check_address(address, PUBLIC)
    except TargetRefused:
        return
    inner = getattr(address, "ipv4_mapped", None) or address
    assert not any((inner.is_private, inner.is_loopback, inner.is_link_local, inner.is_multicast))


def test_a_network_that_is_allowed_is_allowed_in_every_form_and_no_other() -> None:
    rules = TargetRules(networks=(ipaddress.ip_network("10.1.0.0/16"),))

    check_address(ipaddress.ip_address("10.1.2.3"), rules)
    check_address(ipaddress.ip_address("::ffff:10.1.2.3"), rules)
    for text in ("10.2.0.1", "::1"):
        with pytest.raises(TargetRefused):
            check_address(ipaddress.ip_address(text), rules)


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://example.com:8443/a?b=c", "https://xn--bcher-kva.example/hook", "https://8.8.8.8/x",
     "https://[2606:4700:4700::1111]/", "https://EXAMPLE.com./x"],
)  # fmt: skip
def test_a_public_https_url_is_taken(url: str) -> None:
    check_url(url, PUBLIC)


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "http://example.com", "ftp://example.com", "file:///etc/passwd", "gopher://example.com",
     "https://", "https:///x", "https://user@example.com", "https://user:pw@example.com", "https://a.example#f",
     "https://example.com:22/", "https://example.com:80/", "https://example.com:99999/", "https://example.com:x/",
     "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.0.0.1/", "https://0177.0.0.1/",
     "https://0x7f000001/", "https://169.254.169.254/latest/meta-data", "https://[::1]/", "https://[::ffff:10.0.0.1]/",
     "https://[fe80::1%25eth0]/", "https://localhost/", "https://x.localhost/", "https://metadata.google.internal/",
     "https://printer.local/", "https://intranet/", "https://exa mple.com/", "https://example.com/\r\nHost: x",
     "https://ex\u00e4mple.com/", "https://example.com\\@evil.example/", "https://-a.example/", "https://a..example/",
     "https://" + "a" * 64 + ".example/", "https://example.com/" + "a" * 2_000, "//example.com/", "https://1.2.3.4.5/"],
)  # fmt: skip
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(TargetRefused):
        check_url(url, PUBLIC)


def test_the_settings_make_the_rules() -> None:
    assert rules_of(Settings()) == TargetRules()
    rules = rules_of(Settings(webhook_allow_http=True, webhook_ports=(0,), webhook_allow_networks=("10.1.0.0/16",)))
    assert rules == TargetRules(True, None, (ipaddress.ip_network("10.1.0.0/16"),))


def test_http_and_any_port_only_when_the_rules_say_so() -> None:
    check_url("http://example.com/", TargetRules(allow_http=True))
    check_url("https://example.com:9000/", TargetRules(ports=None))
    check_url("http://localhost:9000/", TargetRules(True, None, (ipaddress.ip_network("127.0.0.0/8"),)))
    with pytest.raises(TargetRefused):
        check_url("http://example.com:9000/", TargetRules(allow_http=True))
