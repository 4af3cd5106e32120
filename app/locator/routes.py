"""Every call of the locator: how it is routed, who may call, what it answers."""

from __future__ import annotations

from typing import Any, Final

from app.access.matrix import RIGHTS
from app.locator import api, consul, consul_api, prometheus_api, watch_api
from app.locator.wire import (
    Found,
    Generation,
    HashKey,
    HeartbeatView,
    Index,
    InstancePage,
    InstanceView,
    Name,
    Received,
    RegisteredView,
    Registration,
    Report,
    Start,
    StrategyName,
    SummaryPage,
    Tag,
    Wait,
    Watched,
    Zone,
)
from app.web.fields import Cursor, Limit
from app.web.routes import Route

_AWAY: Final = (503, "unavailable")
_WARM: Final = (503, "warming_up")
_UNKNOWN: Final = (404, "unknown_instance")
_STALE: Final = (409, "stale_generation")
_NO_SERVICE: Final = (404, "no_service")
_CROWD: Final = (503, "too_many_watchers")
_LIMITED: Final = (429, "rate_limited")
_CHANGED: Final = (_UNKNOWN, _STALE, _LIMITED, _AWAY, _WARM)

_SERVICE: Final[dict[str, Any]] = {"service": Name}
_INSTANCE: Final[dict[str, Any]] = {"service": Name, "id": Name}
_FILTERS: Final[dict[str, Any]] = {"tag": Tag, "zone": Zone, "healthy": bool}
_PLACE: Final = "/v1/services/{service}/instances/{id}"
_OBJECT: Final = dict[str, Any]


def _route(method: Any, path: str, handler: Any, **rest: Any) -> Route:
    return Route(method, path, handler, tag=rest.pop("tag", "locator"), roles=RIGHTS[method, path].roles, **rest)


def _consul(method: Any, path: str, handler: Any, summary: str, answer: Any, **rest: Any) -> Route:
    """Return a call of Consul's API: its token field may carry the key, and parameters that we do not know are let be."""
    problems = (*rest.pop("problems", ()), (422, "invalid_request"), _WARM)
    return _route(
        method, path, handler, summary=summary, tag="consul", answers={200: answer}, any_query=True, waits=method == "GET",
        key_field="x-consul-token", problems=problems, **rest,
    )  # fmt: skip


_LOOKUPS: Final = (
    _route(
        "GET", "/v1/services/{service}/lookup", api.lookup, summary="Choose an instance for a call, and lend a lease on it",
        path_fields=_SERVICE, query={"strategy": StrategyName, "key": HashKey, "zone": Zone, "tag": Tag},
        answers={200: Found}, problems=(_NO_SERVICE, (503, "no_instance"), _WARM),
        description="Answered from memory, whether or not Redis can be reached. `zone` is preferred, `tag` is required.",
    ),
    _route(
        "POST", "/v1/services/{service}/report", api.report, summary="Report what became of a call; releases its lease",
        path_fields=_SERVICE, body=Report, answers={200: Received},
        problems=(_NO_SERVICE, (404, "unknown_lease"), _AWAY, _WARM),
        description="Once for each lease: a repeated report changes nothing. A lease that is not reported ends after 30 s.",
    ),
)  # fmt: skip

_REGISTRATION: Final = (
    _route(
        "PUT", _PLACE, api.register, summary="Register an instance, or change what it is registered with",
        path_fields=_INSTANCE, body=Registration, answers={200: RegisteredView, 201: RegisteredView},
        problems=((409, "too_many_instances"), _STALE, _UNKNOWN, _LIMITED, _AWAY, _WARM),
    ),
    _route("GET", _PLACE, api.read_instance, summary="Read an instance", path_fields=_INSTANCE,
           answers={200: InstanceView}, problems=(_UNKNOWN, _WARM)),
    _route(
        "DELETE", _PLACE, api.deregister, summary="Deregister an instance; this generation of it cannot come back",
        path_fields=_INSTANCE, query={"generation": Generation}, answers={204: None}, problems=_CHANGED,
    ),
    _route(
        "POST", f"{_PLACE}/heartbeat", api.heartbeat, summary="Say that an instance lives", path_fields=_INSTANCE,
        body=Start, body_optional=True, answers={200: HeartbeatView}, problems=(_UNKNOWN, _STALE, _WARM),
    ),
    *(
        _route("POST", f"{_PLACE}/{word}", handler, summary=summary, path_fields=_INSTANCE, body=Start,
               body_optional=True, answers={200: RegisteredView}, problems=_CHANGED)
        for word, handler, summary in (
            ("drain", api.drain, "Give an instance no further calls; those it has go on"),
            ("resume", api.resume, "End draining, maintenance or isolation"),
            ("isolate", api.isolate, "Open an instance's breaker on every replica, until it is reset"),
            ("reset", api.reset, "Close an instance's breaker on every replica"),
        )
    ),
)  # fmt: skip

_READS: Final = (
    _route("GET", "/v1/services", api.list_services, summary="List services", query={"limit": Limit, "cursor": Cursor},
           answers={200: SummaryPage}, problems=(_WARM,)),
    _route(
        "GET", "/v1/services/{service}", api.list_instances, summary="List instances of a service, with state and load",
        path_fields=_SERVICE, query={**_FILTERS, "limit": Limit, "cursor": Cursor}, answers={200: InstancePage},
        problems=(_NO_SERVICE, _WARM),
    ),
    _route(
        "GET", "/v1/services/{service}/watch", watch_api.watch, summary="Wait for changes of a service",
        path_fields=_SERVICE, query={"index": Index, "wait": Wait}, answers={200: Watched}, streams=True, waits=True,
        problems=(_NO_SERVICE, _CROWD, _WARM),
        description="With `index`: answers once it is no longer the present one, or after `wait` seconds. With"
        " `Accept: text/event-stream`: events `snapshot` and `change`, resumed by `Last-Event-ID`.",
    ),
    _route(
        "GET", "/v1/sd/prometheus", prometheus_api.prometheus_targets, summary="Targets for Prometheus http_sd",
        query={"service": Name, **_FILTERS}, answers={200: list[dict[str, Any]]}, problems=(_WARM,), streams=True,
    ),
)  # fmt: skip

_CONSUL: Final = (
    _consul("GET", "/v1/catalog/services", consul_api.catalog_services, "Services and their tags", dict[str, list[str]],
            problems=(_CROWD,)),
    _consul("GET", "/v1/catalog/service/{service}", consul_api.catalog_service, "Instances of a service",
            list[consul.CatalogEntry], path_fields=_SERVICE, problems=(_CROWD,), streams=True),
    _consul("GET", "/v1/catalog/datacenters", consul_api.catalog_datacenters, "The one datacenter", list[str]),
    _consul("GET", "/v1/catalog/nodes", consul_api.catalog_nodes, "The one node", list[consul.Node]),
    _consul("GET", "/v1/health/service/{service}", consul_api.health_service, "Instances of a service, with checks",
            list[consul.HealthEntry], path_fields=_SERVICE, problems=(_CROWD,), streams=True),
    _consul("GET", "/v1/health/checks/{service}", consul_api.health_checks, "Checks of a service",
            list[consul.HealthCheck], path_fields=_SERVICE, problems=(_CROWD,), streams=True),
    _consul("GET", "/v1/health/state/{state}", consul_api.health_state, "Checks in a state", list[consul.HealthCheck],
            path_fields={"state": consul.CheckState}, problems=(_CROWD,), streams=True),
    _consul("GET", "/v1/agent/self", consul_api.agent_self, "What answers here", _OBJECT),
    _consul("GET", "/v1/agent/services", consul_api.agent_services, "Instances that were registered by this API",
            dict[str, consul.AgentEntry], streams=True),
    _consul("GET", "/v1/agent/checks", consul_api.agent_checks, "Checks of those instances",
            dict[str, consul.HealthCheck], streams=True),
    _consul("GET", "/v1/agent/service/{id:(?!register$)[^/]+}", consul_api.agent_service, "One instance",
            consul.AgentEntry, path_fields={"id": Name}, problems=(_UNKNOWN, (409, "ambiguous_id"))),
    _consul("PUT", "/v1/agent/service/register", consul_api.agent_register, "Register an instance", None,
            problems=((400, "malformed_json"), (413, "payload_too_large"), (408, "request_timeout"),
                      (409, "too_many_instances"), *_CHANGED)),
    *(
        _consul("PUT", path, handler, summary, None, path_fields=fields, problems=((409, "ambiguous_id"), *_CHANGED))
        for path, handler, summary, fields in (
            ("/v1/agent/service/deregister/{id}", consul_api.agent_deregister, "Deregister an instance", {"id": Name}),
            ("/v1/agent/service/maintenance/{id}", consul_api.agent_maintenance, "Begin or end maintenance", {"id": Name}),
            ("/v1/agent/check/pass/{check_id}", consul_api.check_pass, "Pass a TTL check", {"check_id": consul.CheckId}),
            ("/v1/agent/check/warn/{check_id}", consul_api.check_pass, "Pass a TTL check", {"check_id": consul.CheckId}),
            ("/v1/agent/check/fail/{check_id}", consul_api.check_fail, "Fail a TTL check", {"check_id": consul.CheckId}),
        )
    ),
    _consul("PUT", "/v1/agent/check/update/{check_id}", consul_api.check_update, "Set a TTL check", None,
            path_fields={"check_id": consul.CheckId},
            problems=((400, "malformed_json"), (413, "payload_too_large"), (408, "request_timeout"),
                      (409, "ambiguous_id"), *_CHANGED)),
)  # fmt: skip

LOCATOR_ROUTES: Final = (*_LOOKUPS, *_REGISTRATION, *_READS, *_CONSUL)
