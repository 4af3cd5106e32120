"""GET /v1/sd/prometheus: targets for Prometheus' http_sd.

The whole list each time, one group for each instance, in a stable order; while the registry has not been read yet 503
and not an empty list, because Prometheus keeps the targets it has when a refresh fails.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from app.locator.api import filter_of, locator_of
from app.locator.views import is_long, parts_of
from app.locator.wire import Name
from app.web.paced import send_json
from app.web.routes import Answer, Handled, query

if TYPE_CHECKING:
    from app.locator.record import Record
    from app.web.request import Request

_foreign = re.compile(r"[^A-Za-z0-9_]")


def target_group(record: Record) -> dict[str, Any]:
    """Return one instance as a target with its labels, whose values are all texts."""
    one = record.instance
    facts = one.facts
    host = f"[{facts.host}]" if ":" in facts.host else facts.host
    labels = {
        "__meta_locator_service": one.service,
        "__meta_locator_instance": one.id,
        "__meta_locator_state": one.state.value,
        "__meta_locator_zone": one.zone,
        "__meta_locator_weight": str(one.weight),
        # Commas on both sides, so that a relabelling rule finds a tag by `,tag,`.
        "__meta_locator_tags": f",{','.join(one.tags)}," if one.tags else "",
    } | {f"__meta_locator_metadata_{_foreign.sub('_', key)}": value for key, value in facts.metadata.items()}
    return {"targets": [f"{host}:{facts.port}"], "labels": labels}


async def prometheus_targets(request: Request) -> Handled:
    """GET /v1/sd/prometheus."""
    locator = locator_of(request)
    locator.check_warm()
    directory = locator.directory
    wanted = cast("str | None", query(request, "service", Name, None))
    lets = filter_of(request)
    subject = ("prometheus", request.query_text)
    kept = locator.views.kept(subject, directory.index)
    if kept is not None:
        return Answer(kept)
    await locator.views.turn()
    index = directory.index
    names = sorted(directory.services) if wanted is None else [wanted]
    found: list[Record] = []
    for name in names:
        service = directory.get(name)
        if service is not None:
            found += (record for _, record in sorted(service.records.items()) if lets(record))
    if is_long(record.instance for record in found):
        return await send_json(request, locator.views.in_turn(parts_of(found, target_group)), {})
    return Answer(await locator.views.list_of(subject, index, found, target_group))
