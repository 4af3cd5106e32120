"""Experiments as feature flags: what a context gets, by the OpenFeature Remote Evaluation Protocol (OFREP) 0.3.0.

The flag's key is the name of the experiment, the targeting key is the unit. Reasons: SPLIT while the experiment decides (a
unit outside the coverage gets the control), STATIC once a variant is deployed to all, DISABLED once it was rolled back or is
archived, and while it is paused for units that are not in it.

Answers offer a stream that tells of every change of an experiment (ADR 8 of the protocol): a client that has it need not
poll. New weights of Thompson sampling are no change, since whoever was assigned keeps what it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from app.privacy.guard import REFUSED_DETAIL, is_card_alone
from app.shadow.definition import FlagValue
from app.web.fields import Document, Input, check_name
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.shadow.assignment import Assignment
    from app.shadow.catalog import Catalog
    from app.shadow.experiment import Experiment

TARGETING_KEY: Final = "targetingKey"
UNIT_MAX: Final = 256  # characters of a unit, as everywhere
SLICE: Final = 128  # flags of one turn of the event loop: about 2 ms
ASKED_AT_ONCE: Final = 32  # flags of one request that wait for Redis together; the links for new units are four
FLAGS: Final = "/flags"  # the name of the watch over all flags; no service is called that
STREAM_PATH: Final = "/ofrep/v1/sse"
INACTIVITY_S: Final = 120  # after which a client that nobody looks at ends its stream: the protocol's default

ErrorCode = Literal["PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL"]
FlagReason = Literal["STATIC", "SPLIT", "DISABLED"]

_configuration = re.compile(r'"?([0-9]{1,15})"?\Z')

_REASONS: Final[dict[str, FlagReason]] = {
    "assigned": "SPLIT", "sampled": "SPLIT", "outside_coverage": "SPLIT", "deployed": "STATIC", "paused": "DISABLED",
    "rolled_back": "DISABLED", "archived": "DISABLED",
}  # fmt: skip


class FlagRequest(Input, frozen=True):
    """Body of both evaluations: the context, whose `targetingKey` is the unit."""

    context: Document | None = None


class Flag(Struct):
    """A flag that was evaluated. `metadata` holds texts, numbers and booleans only."""

    key: str
    value: FlagValue
    reason: FlagReason
    variant: str
    metadata: dict[str, bool | int | float | str]


class StreamEndpoint(Struct, frozen=True):
    """Where a stream is, seen from where the client evaluates: the protocol's form without an origin."""

    requestUri: str  # noqa: N815


class StreamOffer(Struct, frozen=True):
    """A stream that tells when to evaluate again."""

    type: Literal["sse"]
    endpoint: StreamEndpoint
    inactivityDelaySec: int  # noqa: N815


STREAMS: Final = (StreamOffer("sse", StreamEndpoint(STREAM_PATH), INACTIVITY_S),)


class EvaluatedFlag(Flag):
    """A flag that was asked for alone, with the streams that tell when to ask again."""

    eventStreams: tuple[StreamOffer, ...] = STREAMS  # noqa: N815


class Refetch(Struct, tag="refetchEvaluation", tag_field="type"):
    """What an event of the stream says: the configuration of flags has changed.

    etag          of the configuration: the newest revision of an experiment; evaluations that name it are no older
    lastModified  when that was made, in seconds since 1970
    """

    etag: str
    lastModified: int  # noqa: N815


class FlagFailure(Struct):
    """A flag that could not be evaluated."""

    key: str
    errorCode: ErrorCode  # noqa: N815 - the protocol's name
    errorDetails: str  # noqa: N815


class FlagNotFound(Struct):
    """There is no flag of this key."""

    key: str
    errorCode: Literal["FLAG_NOT_FOUND"]  # noqa: N815
    errorDetails: str  # noqa: N815


class FlagList(Struct):
    """All flags for one context; those that could not be evaluated say why."""

    flags: list[dict[str, Any]]
    metadata: dict[str, bool | int | float | str] = {}
    eventStreams: tuple[StreamOffer, ...] = STREAMS  # noqa: N815


class BulkFailure(Struct):
    """No flag could be evaluated."""

    errorCode: ErrorCode  # noqa: N815
    errorDetails: str  # noqa: N815


class ContextRefused(Exception):
    """A context is no context; `code` and `detail` say why, in words of ours."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        """See the class."""
        super().__init__(code)
        self.code = code
        self.detail = detail


def unit_of(context: Document | None) -> str | None:
    """Return the targeting key of a context, None when it has none. Raises ContextRefused."""
    given = None if context is None else context.get(TARGETING_KEY)
    if given is None or given == "":
        return None
    if not isinstance(given, str) or len(given) > UNIT_MAX or any(letter < " " or letter == "\x7f" for letter in given):
        raise ContextRefused("INVALID_CONTEXT", f"targetingKey must be a text of at most {UNIT_MAX} printable characters.")
    if is_card_alone(given):
        raise ContextRefused("INVALID_CONTEXT", f"targetingKey: {REFUSED_DETAIL}.")
    return given


class Flags:
    """Evaluates flags. No state of its own."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        """`catalog` returns the experiments; it raises ConnectionError before they are loaded."""
        self._catalog = catalog

    async def catch_up(self, mark: str | None) -> None:
        """Know at least the configuration that an event has told of; any other text is none. Raises what Postgres raises."""
        told = None if mark is None else _configuration.match(mark)
        if told is not None:
            await self._catalog().catch_up(int(told[1]))

    async def one(self, key: str, context: Document | None) -> Flag | None:
        """Return one flag, None when there is none of this key. Raises ContextRefused, and what `Catalog.assign` raises."""
        unit = unit_of(context)
        if not check_name(key):
            return None
        try:
            experiment = await self._catalog().find(key)
        except Problem as refused:
            if refused.code == "no_experiment":
                return None
            raise
        flag = _at_once(experiment, unit)
        return flag if flag is not None or unit is None else await self._asked(experiment, unit)

    async def all(self, context: Document | None) -> tuple[bytes, str]:
        """Return the body with all flags that are not archived, and its entity tag.

        The tag is that of the flags, of where their experiments stand, and of the whole context: a client that changes its
        context never keeps what it has for another one. Raises what `one` raises.
        """
        unit = unit_of(context)
        digest = hashlib.sha256(msgspec.json.encode(context, order="deterministic"))
        open_ = sorted(
            (one for one in self._catalog() if one.state.status != "archived"), key=lambda one: one.definition.name
        )
        found: list[Flag | FlagFailure | None] = []
        for number, experiment in enumerate(open_):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            digest.update(f"\n{experiment.definition.name} {experiment.revision}".encode())
            try:
                found.append(_at_once(experiment, unit))
            except ContextRefused as refused:
                found.append(FlagFailure(experiment.definition.name, refused.code, refused.detail))
        if unit is not None:
            await self._fill(found, open_, unit)
        body = msgspec.json.encode(FlagList([msgspec.to_builtins(one) for one in found]))
        digest.update(body)
        return body, f'"{digest.hexdigest()[:32]}"'

    async def _fill(self, found: list[Flag | FlagFailure | None], experiments: Sequence[Experiment], unit: str) -> None:
        """Evaluate what is still None, since Redis has to be asked: many flags take as long as a few."""
        waiting = [place for place, one in enumerate(found) if one is None]
        for start in range(0, len(waiting), ASKED_AT_ONCE):
            part = waiting[start : start + ASKED_AT_ONCE]
            flags = await asyncio.gather(*(self._asked(experiments[place], unit) for place in part))
            for place, flag in zip(part, flags, strict=True):
                found[place] = flag

    async def _asked(self, experiment: Experiment, unit: str) -> Flag:
        return flag_of(experiment, await self._catalog().assign(experiment.definition.name, unit))


def _at_once(experiment: Experiment, unit: str | None) -> Flag | None:
    """Return a flag, None when Redis has to be asked. Raises ContextRefused."""
    if experiment.settled is None and unit is None:
        raise ContextRefused("TARGETING_KEY_MISSING", "The flag is split by targetingKey, and the context has none.")
    given = experiment.assign_at_once(unit or "")
    return None if given is None else flag_of(experiment, given)


def flag_of(experiment: Experiment, given: Assignment) -> Flag:
    """Return an assignment as a flag."""
    definition = experiment.definition
    value = definition.variants[given.index].value
    metadata: dict[str, bool | int | float | str] = {
        "experiment": definition.name, "assignment": given.reason, "counts": given.counts, "version": experiment.revision,
    }  # fmt: skip
    if given.propensity is not None:
        metadata["propensity"] = given.propensity
    return Flag(definition.name, given.variant if value is None else value, _REASONS[given.reason], given.variant, metadata)


def refetch_of(experiment: Experiment) -> Refetch:
    """Return what is told when this experiment is the one that was changed last."""
    return Refetch(f'"{experiment.revision}"', int(experiment.changed_at.timestamp()))


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether an If-None-Match field names this tag (RFC 9110 13.1.2: weak comparison)."""
    if if_none_match is None:
        return False
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in given or tag in given
