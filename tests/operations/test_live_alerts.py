"""Faults are real, and so are Prometheus, Alertmanager and what the pager gets."""

from __future__ import annotations

from tests.operations.live_stack import ALERT_TOKEN, LiveOperations, wait_for


def test_a_killed_server_pages_and_its_return_resolves_the_page(live: LiveOperations) -> None:
    before = len(live.pager.deliveries)

    live.server.kill()

    page = wait_for("the page", lambda: live.pager.received("page", "CreditsServiceDown", after=before))
    assert page.authorization == f"Bearer {ALERT_TOKEN}"
