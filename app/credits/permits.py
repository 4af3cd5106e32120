"""What a key may see and how fast: the checks of a call that its tenant decides. Most keys need none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app.access.api import ACCESS, key_of
from app.access.limits import fields_of, limited_problem
from app.access.scope import ROOT
from app.credits.operation import position_of
from app.web.answers import Answer
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from app.access.bucket import Decision
    from app.credits.book import Book
    from app.web.request import Request
    from app.web.routes import Handled

SPENDS: Final = frozenset({"consume", "reserve"})


def no_account(leg: int | None = None) -> Problem:
    """Return the refusal for a tenant without an account that the key may know of; `leg` counts those of a transaction."""
    problem = Problem(404, "no_account", "There is no account of this tenant; create it with POST /v1/accounts.")
    if leg is not None:
        problem.extra = {"leg": leg}
    return problem


def no_reservation() -> Problem:
    """Return the refusal for an id that names no reservation that the key may know of."""
    return Problem(404, "no_reservation", "There is no reservation with this id.")


def no_transaction() -> Problem:
    """Return the refusal for an id that names no transaction that the key may know of."""
    return Problem(404, "no_transaction", "There is no transaction with this id.")


def is_free(request: Request, tenant: str | None) -> bool:
    """Whether a call needs no check: its key sees all tenants, and neither key nor tenant has a rate limit."""
    key = key_of(request)
    return key.tenants is None and not request.app[ACCESS].rates.buckets(key, tenant)


def sees(request: Request, tenant: str) -> bool:
    """Whether a tenant exists for the key of this request; if not, the attempt is noted."""
    key = key_of(request)
    if key.tenants is None:
        return True
    return request.app[ACCESS].gate.sees(key, tenant, request.method, request.template, request.address)


async def sees_operation(request: Request, book: Book, fields: dict[str, Any]) -> Problem | None:
    """Return the 404 of an operation on what is not of the key's tenants, None when it may go on."""
    if key_of(request).tenants is None:
        return None
    if "tenant" in fields:
        return None if sees(request, fields["tenant"]) else no_account()
    if fields["op"] == "refund":
        position = position_of(fields["ref"], book.mask)
        events = await book.records.events(*position) if position is not None else []
        return None if events and sees(request, events[0].tenant_id) else no_transaction()
    row = await book.records.reservation(fields["ref"])
    return None if row is not None and sees(request, row.tenant_id) else no_reservation()


async def hidden_operations(request: Request, book: Book, operations: Sequence[dict[str, Any]]) -> dict[int, Problem]:
    """Return the operations of a batch that are on what is not of the key's tenants, by place, each with its 404."""
    if key_of(request).tenants is None:
        return {}
    found = [await sees_operation(request, book, fields) for fields in operations]
    return {i: problem for i, problem in enumerate(found) if problem is not None}


def drawn(request: Request, op: str, tenant: str | None) -> str | None:
    """Return the tenant from whose bucket an operation draws, None when from none.

    With the root key only a spend draws from it: whoever runs the ledger can look at an account, top it up and change
    its settings although its tenant has used the bucket up.
    """
    return None if key_of(request) is ROOT and op not in SPENDS else tenant


async def take(request: Request, tenant: str | None, tokens: int = 1) -> Decision | None:
    """Take tokens from the buckets of key and tenant. Raises Problem 429; returns what to tell, None without a limit."""
    access = request.app[ACCESS]
    buckets = access.rates.buckets(key_of(request), tenant)
    if not buckets or access.limits is None:
        return None
    made = await access.limits.check(buckets, tokens)
    if made.refused is not None:
        raise limited_problem(made)
    return made


async def take_each(request: Request, tenants: Iterable[str]) -> Decision | None:
    """Take one token a tenant named, from its bucket; and as many from that of the key. Raises and returns as `take`."""
    rates = request.app[ACCESS].rates
    key = key_of(request)
    if rates.is_free(key):
        return None
    counts: dict[str, int] = {}
    for tenant in tenants:
        counts[tenant] = counts.get(tenant, 0) + 1
    limited = [tenant for tenant in counts if len(rates.buckets(key, tenant)) > len(rates.buckets(key, None))]
    free = sum(counts.values()) - sum(counts[tenant] for tenant in limited)
    told = await take(request, None, free) if free else None
    for tenant in limited:
        told = await take(request, tenant, counts[tenant])
    return told


def tell(answer: Handled, made: Decision | None) -> Handled:
    """Add the header fields of a rate limit to an answer."""
    if made is None:
        return answer
    fields = fields_of(made)
    if isinstance(answer, Answer):
        answer.fields += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    elif isinstance(answer, Problem):
        own = answer.headers or {}
        answer.headers = {**own, **{n: f"{own[n]}, {value}" if n in own else value for n, value in fields.items()}}
    return answer
