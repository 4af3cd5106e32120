"""Signatures: the specification's vector, its own library as the oracle, and secrets that no database holds."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.settings import Settings
from app.webhooks.signature import SecretUnknown, SigningKeys, secret_text, sign, signed_fields, signing_keys

KEY = b"a key of the server"
VECTOR_SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_the_vector_of_the_specification() -> None:
    signature = sign(VECTOR_SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert secret_text(VECTOR_SECRET) == "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@given(st.binary(min_size=24, max_size=64), st.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True), st.text(max_size=200))
def test_the_specifications_library_accepts_what_we_sign(secret: bytes, message_id: str, text: str) -> None:
    body = text.encode("utf-8", "replace")
    fields = signed_fields([secret], message_id, int(time.time()), body)

    Webhook(secret_text(secret)).verify(body, fields, json_parse=False)


def test_during_a_rotation_receivers_with_either_secret_accept() -> None:
    keys = SigningKeys(KEY)
    both = keys.secrets(keys.current_id, "whe_a", 2, old_signs=True)
    fields = signed_fields(both, "msg_1", int(time.time()), b"{}")

    for version in (1, 2):
        Webhook(secret_text(keys.secret(keys.current_id, "whe_a", version))).verify(b"{}", fields)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_text(keys.secret(keys.current_id, "whe_a", 3))).verify(b"{}", fields)


def test_the_first_version_has_none_before_it() -> None:
    keys = SigningKeys(KEY)

    assert len(keys.secrets(keys.current_id, "whe_a", 1, old_signs=True)) == 1
    assert len(keys.secrets(keys.current_id, "whe_a", 2, old_signs=False)) == 1


def test_every_endpoint_version_and_server_has_its_own_secret() -> None:
    keys, other = SigningKeys(KEY), SigningKeys(KEY[::-1])

    secrets = {
        keys.secret(keys.current_id, "whe_a", 1), keys.secret(keys.current_id, "whe_b", 1),
        keys.secret(keys.current_id, "whe_a", 2), other.secret(other.current_id, "whe_a", 1),
        keys.secret(keys.current_id, "whe_a\n1", 1), keys.secret(keys.current_id, "whe_a", 11),
    }  # fmt: skip

    assert len(secrets) == 6
    assert {len(secret) for secret in secrets} == {32}


def test_an_earlier_key_of_the_server_still_signs_and_an_unknown_one_does_not() -> None:
    before, after = SigningKeys(KEY), SigningKeys(KEY[::-1], [KEY])

    assert after.current_id != before.current_id
    assert after.secret(before.current_id, "whe_a", 1) == before.secret(before.current_id, "whe_a", 1)
    with pytest.raises(SecretUnknown, match=after.current_id):
        before.secret(after.current_id, "whe_a", 1)


def test_a_key_that_could_be_guessed_is_refused_and_none_is_printed() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        SigningKeys(b"short")
    assert KEY.decode() not in repr(SigningKeys(KEY))


def test_a_key_that_is_set_later_leaves_older_endpoints_their_secret() -> None:
    before = signing_keys(Settings(), "the root key of a test")
    after = signing_keys(Settings(webhook_key="a key that was set"), "the root key of a test")
    last = signing_keys(
        Settings(webhook_key="another key, set", webhook_old_key="a key that was set"), "the root key of a test"
    )

    assert len({before.current_id, after.current_id, last.current_id}) == 3
    for keys in (before, after, last):
        assert keys.secret(before.current_id, "whe_a", 1) == before.secret(before.current_id, "whe_a", 1)
    assert last.secret(after.current_id, "whe_a", 1) == after.secret(after.current_id, "whe_a", 1)
