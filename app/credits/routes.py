"""The calls of credits: path, body, answers, refusals. The OpenAPI document is made from this table."""

from __future__ import annotations

from typing import Any, Final, Literal

from app.credits import alert_api, api, reads
from app.credits.batch import batch
from app.credits.transfer_api import transfer
from app.credits.wire import (
    Abort,
    Account,
    AccountChange,
    Batch,
    BatchResults,
    Commit,
    Consume,
    Id,
    Legs,
    NewAccount,
    Refund,
    Reservation,
    ReservationStatus,
    Reserve,
    TopUp,
    Transaction,
    TransactionType,
)
from app.web.fields import Cursor, Limit, Name, Time
from app.web.routes import Route

_TENANT: Final[dict[str, Any]] = {"tenant_id": Name}
_RESERVATION: Final[dict[str, Any]] = {"reservation_id": Id}
_PAGE: Final[dict[str, Any]] = {"limit": Limit, "cursor": Cursor}

_REUSED: Final = (422, "idempotency_key_reused")
_AWAY: Final = (503, "unavailable")
_NO_ACCOUNT: Final = (404, "no_account")
_VERSION: Final = (409, "version_conflict")
_FULL: Final = (409, "balance_limit_exceeded")
_QUOTA: Final = (429, "quota_exceeded")
_CLOSED: Final = tuple((409, f"reservation_{status}") for status in ("committed", "aborted", "expired"))

ACCOUNT_ROUTES: Final = (
    Route(
        "POST", "/v1/accounts", api.create_account, summary="Open an account", tag="accounts", body=NewAccount,
        answers={201: Account}, etag=True, problems=((409, "account_exists"), _REUSED, _AWAY),
    ),
    Route(
        "GET", "/v1/accounts", reads.accounts, summary="List accounts by name", tag="accounts", query=_PAGE,
        answers={200: reads.AccountPage}, problems=(_AWAY,),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}", reads.account, summary="Read an account", tag="accounts",
        path_fields=_TENANT, answers={200: Account}, etag=True, problems=(_NO_ACCOUNT, _AWAY),
    ),
    Route(
        "PATCH", "/v1/accounts/{tenant_id}", api.change_account, summary="Change an account's settings",
        tag="accounts", path_fields=_TENANT, body=AccountChange, answers={200: Account}, etag=True,
        problems=(_NO_ACCOUNT, _VERSION, _REUSED, _AWAY),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}/transactions", reads.transactions, summary="List transactions, newest first",
        tag="accounts", path_fields=_TENANT, query={"type": TransactionType, "from": Time, "to": Time, **_PAGE},
        answers={200: reads.TransactionPage}, problems=(_NO_ACCOUNT, _AWAY),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}/balance", reads.balance, summary="Read the balance at a time",
        tag="accounts", path_fields=_TENANT, query={"at": Time}, answers={200: reads.BalanceAt},
        problems=(_NO_ACCOUNT, _AWAY),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}/reservations", reads.reservations, summary="List reservations, newest first",
        tag="accounts", path_fields=_TENANT, query={"status": ReservationStatus, **_PAGE},
        answers={200: reads.ReservationPage}, problems=(_NO_ACCOUNT, _AWAY),
    ),
    Route(
        "GET", "/v1/accounts/{tenant_id}/usage", reads.usage, summary="Sum usage by hour or day", tag="accounts",
        path_fields=_TENANT, query={"from": Time, "to": Time, "granularity": Literal["hour", "day"]},
        answers={200: reads.UsagePage}, problems=(_NO_ACCOUNT, _AWAY),
    ),
)  # fmt: skip

CREDIT_ROUTES: Final = (
    Route(
        "POST", "/v1/credits/topup", api.topup, summary="Add credits", tag="credits", body=TopUp, idempotent=True,
        answers={200: Transaction}, etag=True, problems=(_NO_ACCOUNT, _VERSION, _FULL, _REUSED, _AWAY),
    ),
    Route(
        "POST", "/v1/credits/consume", api.consume, summary="Spend credits", tag="credits", body=Consume,
        idempotent=True, answers={200: Transaction}, etag=True,
        problems=((402, "insufficient_credits"), _NO_ACCOUNT, _VERSION, _QUOTA, _REUSED, _AWAY),
    ),
    Route(
        "POST", "/v1/credits/refund", api.refund, summary="Give back what was spent", tag="credits", body=Refund,
        idempotent=True, answers={200: Transaction}, etag=True,
        problems=((404, "no_transaction"), (409, "already_refunded"), (409, "not_refundable"), _VERSION, _FULL,
                  (422, "refund_exceeds_consumed"), _REUSED, _AWAY),
    ),
    Route(
        "POST", "/v1/credits/reserve", api.reserve, summary="Hold credits for a while", tag="credits", body=Reserve,
        idempotent=True, answers={200: Reservation}, etag=True,
        problems=((402, "insufficient_credits"), _NO_ACCOUNT, _VERSION, _QUOTA, _REUSED, _AWAY),
    ),
    Route(
        "POST", "/v1/credits/reservations/{reservation_id}/commit", api.commit, summary="Spend held credits",
        tag="credits", path_fields=_RESERVATION, body=Commit, body_optional=True, idempotent=True,
        answers={200: Transaction}, etag=True,
        problems=((404, "no_reservation"), *_CLOSED, _VERSION, (422, "amount_exceeds_reservation"), _REUSED, _AWAY),
    ),
    Route(
        "POST", "/v1/credits/reservations/{reservation_id}/abort", api.abort, summary="Release held credits",
        tag="credits", path_fields=_RESERVATION, body=Abort, body_optional=True, idempotent=True,
        answers={200: Reservation}, etag=True, problems=((404, "no_reservation"), *_CLOSED, _VERSION, _REUSED, _AWAY),
    ),
    Route(
        "GET", "/v1/credits/reservations/{reservation_id}", reads.reservation, summary="Read a reservation",
        tag="credits", path_fields=_RESERVATION, answers={200: Reservation}, problems=((404, "no_reservation"), _AWAY),
    ),
    Route(
        "POST", "/v1/credits/batch", batch, summary="Many operations, each on its own", tag="credits", body=Batch,
        idempotent=True, answers={200: BatchResults}, problems=(_REUSED, _AWAY),
    ),
)  # fmt: skip

LEDGER_ROUTES: Final = (
    Route(
        "POST", "/v1/transactions", transfer, summary="Move credits between tenants, all legs or none",
        tag="ledger", body=Legs, idempotent=True, answers={200: reads.Transfer},
        problems=((402, "insufficient_credits"), _NO_ACCOUNT, _FULL, _REUSED, _AWAY),
    ),
    Route(
        "GET", "/v1/transactions/{transaction_id}", reads.transaction, summary="Read a transaction", tag="ledger",
        path_fields={"transaction_id": Id}, answers={200: reads.TransactionView},
        problems=((404, "no_transaction"), _AWAY),
    ),
    Route(
        "GET", "/v1/ledger/trial-balance", reads.trial_balance, summary="Read the trial balance", tag="ledger",
        answers={200: reads.TrialBalance}, problems=(_AWAY,),
    ),
)  # fmt: skip

ALERT_ROUTES: Final = (
    Route(
        "GET", "/v1/alerts", alert_api.alerts, summary="List alerts, newest first", tag="alerts",
        query={"tenant_id": Name, "type": alert_api.AlertType, **_PAGE}, answers={200: alert_api.AlertPage},
        problems=(_NO_ACCOUNT, _AWAY),
    ),
)  # fmt: skip

ROUTES: Final = (*ACCOUNT_ROUTES, *CREDIT_ROUTES, *LEDGER_ROUTES, *ALERT_ROUTES)
