"""Lets requests in: key, role, service, and what becomes of a denial. No I/O, no HTTP types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.access.matrix import OPEN, RIGHTS, forbidden
from app.access.scope import Key, may_see
from app.access.table import Denial, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.access.audit_reads import AuditReads
    from app.access.denials import DenialLog
    from app.access.table import KeyTable
    from app.web.problems import Problem


class Gate:
    """Makes an entrance for each route, with all that is fixed looked up once."""

    def __init__(self, table: KeyTable, denials: DenialLog, reads: AuditReads) -> None:
        """Denials are noted in `denials`, calls of routes that show the chain in `reads`."""
        self._table = table
        self._denials = denials
        self._reads = reads

    def entrance(self, method: str, path: str) -> Callable[[str | None, Callable[[], str | None]], Key | Problem]:
        """Return the check of one closed route: Authorization header and what tells the client's address, which is asked
        for only when the client is denied, to the key or the answer.

        Raises LookupError for a route that the matrix does not know or that needs no key: such a server does not start.
        """
        if (method, path) in OPEN or (method, path) not in RIGHTS:
            raise LookupError(f"{method} {path} is not a closed route of app.access.matrix")
        right = RIGHTS[method, path]
        check = self._table.check

        def enter(authorization: str | None, address: Callable[[], str | None]) -> Key | Problem:
            key = check(authorization)
            if isinstance(key, Denial):
                if key.reason != "unconfirmed":  # the fault of the server, not an attempt
                    self._denials.note(key.reason, method, path, key_id=key.key_id, address=address())
                return problem_of(key)
            refused = forbidden(key, right)
            if refused is not None:
                self._denials.note("forbidden", method, path, key_id=key.key_id, address=address())
                return refused
            if right.noted:
                self._reads.note(key.key_id, method, path)
            return key

        return enter

    def sees(self, key: Key, tenant_id: str, method: str, path: str, address: Callable[[], str | None]) -> bool:
        """Whether a tenant exists for a key; if not, the attempt is noted with the network of the client's address, and the
        caller answers as for no tenant.
        """
        if may_see(key, tenant_id):
            return True
        self._denials.note("foreign_tenant", method, path, key_id=key.key_id, address=address())
        return False
