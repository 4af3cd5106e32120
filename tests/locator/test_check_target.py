"""Where active checks may go, and where not."""

from __future__ import annotations

import ipaddress

import pytest

from app.locator.target import CheckRefused, CheckTarget, check_address, http_target, is_host, tcp_target


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "192.168.7.1", "172.16.0.9", "8.8.8.8", "fd12::1", "2001:db8::1", "::ffff:10.0.0.1"]
)
def test_private_and_public_addresses_may_be_checked(text: str) -> None:
    check_address(ipaddress.ip_address(text), ())


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "127.8.8.8", "::1", "169.254.169.254", "169.254.1.1", "fe80::1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1",
        "ff02::1", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_what_only_this_machine_its_link_or_its_cloud_reaches_is_closed(text: str) -> None:
    with pytest.raises(CheckRefused):
        check_address(ipaddress.ip_address(text), ())


def test_the_operator_may_open_a_network() -> None:
    networks = [ipaddress.ip_network("127.0.0.0/8")]

    check_address(ipaddress.ip_address("127.0.0.1"), networks)
    check_address(ipaddress.ip_address("::ffff:127.0.0.1"), networks)
    with pytest.raises(CheckRefused):
        check_address(ipaddress.ip_address("::1"), networks)


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("/healthz?full=1", "10.0.0.1", CheckTarget("10.0.0.1", 80, "/healthz?full=1")),
        ("http://10.0.0.1:9/x", "10.0.0.1", CheckTarget("10.0.0.1", 9, "/x")),
        ("https://App.internal", "app.internal", CheckTarget("app.internal", 443, "/", secure=True)),
        ("http://[2001:DB8::1]:9/x", "2001:db8::1", CheckTarget("2001:db8::1", 9, "/x")),
    ],
)
def test_an_http_check_goes_to_the_instance_itself(text: str, host: str, expected: CheckTarget) -> None:
    assert http_target(text, host, 80) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://10.0.0.2/", "http://10.0.0.1@169.254.169.254/", "ftp://10.0.0.1/", "http://10.0.0.1/#a", "//10.0.0.2/x y",
        "/a\r\nHost: x", "/" + "a" * 600, "http://", "http://10.0.0.1:99999/", "http://10.0.0.1:0/", "gopher", "http://10.0.0.1.evil.example/",
    ],
)  # fmt: skip
def test_an_http_check_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(CheckRefused):
        http_target(text, "10.0.0.1", 80)


def test_a_tcp_check_goes_to_the_instance_itself() -> None:
    assert tcp_target("10.0.0.1:22", "10.0.0.1") == CheckTarget("10.0.0.1", 22)
    assert tcp_target("[::1]:22", "::1") == CheckTarget("::1", 22)
    for text in (
        "10.0.0.2:22",
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:1e3",
        "10.0.0.1:000006553600",
        ":22",
        "",
    ):
        with pytest.raises(CheckRefused):
            tcp_target(text, "10.0.0.1")


@pytest.mark.parametrize("text", ["a", "a.b-c.d", "A1", "10.0.0.1", "2001:db8::1", "my_host.internal"])
def test_names_and_addresses_in_their_usual_form_are_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "a..b", "a b", "127.1", "0x7f.1", "2130706433", "fe80::1%1", "a/b", "[::1]", "ä", "1.2.3.4.5"]
)
def test_other_texts_are_no_hosts(text: str) -> None:
    assert not is_host(text)
