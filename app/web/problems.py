"""Every refusal and fault as `application/problem+json` (RFC 9457).

A `Problem` may be raised or returned by a route. It never carries what the client sent: `detail` and the
details of `errors` are texts of ours, so a log or a screen that shows a problem shows no card number.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import msgspec

TYPE_PREFIX: Final = "urn:shieldx:problem:"

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "account_exists": "The account exists already",
        "canary_waits": "The canary waits",
        "experiment_archived": "The experiment is archived",
        "experiment_exists": "The experiment exists already",
        "experiment_rolled_back": "The experiment was rolled back",
        "experiment_deployed": "A variant is deployed",
        "ambiguous_id": "The id names several instances",
        "stale_generation": "The start of the instance is not the registered one",
        "too_many_instances": "There are as many instances as there may be",
        "too_many_watchers": "There are as many watchers as there may be",
        "unknown_lease": "The lease is not known",
        "warming_up": "The registry has not been read yet",
        "key_expired": "The key has expired",
        "key_revoked": "The key has been revoked",
        "key_rotated": "The key has been rotated",
        "no_canary": "The experiment has no canary",
        "no_challenger": "The rule has no challenger",
        "no_key": "There is no such key",
        "no_rule": "There is no such rule",
        "no_webhook": "There is no such webhook",
        "not_published": "No signed checkpoint covers it",
        "rule_exists": "There is a rule of this name",
        "rule_failed": "The rule has no answer to this input",
        "transaction_stalled": "The transaction was given up",
        "too_many_changes": "The experiment has been changed too often",
        "too_many_events": "Too many outcomes in a day",
        "too_many_experiments": "There are as many experiments as there may be",
        "too_many_keys": "There are as many keys as there may be",
        "too_many_rules": "There are as many rules as there may be",
        "too_many_versions": "There are as many versions as there may be",
        "too_many_webhooks": "There are as many webhooks as there may be",
        "already_refunded": "All of it has been refunded",
        "amount_exceeds_reservation": "The amount is above the held amount",
        "balance_limit_exceeded": "The balance would be too large",
        "connections_exhausted": "Too many connections",
        "expectation_failed": "The expectation cannot be met",
        "forbidden": "The key does not have the right",
        "headers_too_large": "The header section is too large",
        "idempotency_key_in_flight": "The first request with this key is still running",
        "idempotency_key_invalid": "The Idempotency-Key is not valid",
        "idempotency_key_missing": "The Idempotency-Key is missing",
        "idempotency_key_reused": "The Idempotency-Key was used for another request",
        "insufficient_credits": "Not enough credits",
        "internal_error": "Internal error",
        "invalid_request": "The request is not valid",
        "malformed_http": "The HTTP message is malformed",
        "malformed_json": "The body is not valid JSON",
        "method_not_allowed": "The method is not allowed here",
        "no_account": "No such account",
        "no_experiment": "No such experiment",
        "no_instance": "No instance is available",
        "no_reservation": "No such reservation",
        "no_service": "No such service",
        "no_transaction": "No such transaction",
        "not_found": "No such resource",
        "not_refundable": "It was not consumed",
        "overloaded": "The server is at its limit",
        "payload_too_large": "The body is too large",
        "quota_exceeded": "The quota is used up",
        "rate_limited": "Too many requests",
        "refund_exceeds_consumed": "The refund is above what was consumed",
        "request_timeout": "The request did not arrive in time",
        "reservation_aborted": "The reservation was aborted",
        "reservation_committed": "The reservation was committed",
        "reservation_expired": "The reservation has expired",
        "unauthorized": "A valid key is required",
        "unavailable": "A store is out of reach",
        "unknown_unit": "The unit does not take part",
        "unknown_instance": "The instance is not registered",
        "unsafe_deployment": "The deployment is not safe",
        "unsupported_media_type": "The media type is not supported",
        "uri_too_long": "The request target is too long",
        "version_conflict": "The version has changed",
    }
)


class FieldError(msgspec.Struct, frozen=True):
    """One wrong place of a request.

    pointer  RFC 6901 pointer into the body; `?name` for a query parameter, `{name}` for a path parameter,
             `Name:` for a header field
    detail   what is expected there; never the value that came
    """

    pointer: str
    detail: str


class Problem(Exception):
    """One refusal or fault, ready to become an answer.

    status   HTTP status, 400-599
    code     stable machine word of `TITLES`; a code that is not listed gets the status phrase as its title
    detail   one sentence for a person, free of input values
    errors   the wrong places, for bad input
    headers  further header fields of the answer, e.g. Retry-After
    close    the connection cannot be used again after the answer
    extra    further members of the object, e.g. `available=5`
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        **extra: JsonValue,
    ) -> None:
        """See the class."""
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = headers
        self.close = close
        self.extra = extra


def title_of(status: int, code: str) -> str:
    """Title of a problem code, or the status phrase for a code that `TITLES` does not list."""
    title = TITLES.get(code)
    if title is not None:
        return title
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_body(problem: Problem, request_id: str) -> bytes:
    """JSON text of a problem, UTF-8, members in the order of RFC 9457, then ours, then the extras."""
    members: dict[str, object] = {
        "type": TYPE_PREFIX + problem.code,
        "title": title_of(problem.status, problem.code),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        members["errors"] = problem.errors
    if problem.extra:
        members.update(problem.extra)
    return msgspec.json.encode(members)


def starting() -> Problem:
    """Return the 503 of a part of this process that has not opened yet."""
    return Problem(503, "unavailable", "The server is starting.", headers={"Retry-After": "1"})


def invalid(pointer: str, detail: str) -> Problem:
    """422 `invalid_request` with one wrong place."""
    return Problem(422, "invalid_request", "The request has invalid fields.", errors=(FieldError(pointer, detail),))
