"""Every Redis key. All keys of one ledger shard, and all of the locator, carry one hash tag, so they share a cluster slot.

{s00}:shard              hash    generation, seq, at, durable
{s00}:outbox             stream  events that are not yet known to be durable; id <generation>-<last seq of the item>,
                                 each field an operation, its value the result (both JSON)
{s00}:expiry             zset    reservation id by expiry, Unix ms
{s00}:account:<tenant>   hash    balance, reserved, incoming, version, created_at, settings, controls
{s00}:holds:<tenant>     zset    the tenant's open reservations by expiry, Unix ms
{s00}:reservation:<id>   hash    tenant, amount, status, purpose, expires_at, committed, counted
{s00}:refunds:<id>       string  refunded so far of a transaction, 24 h
{s00}:idem:<hash>        string  fingerprint and first answer of an idempotency key, 24 h
{s00}:checkpoint         hash    size, root: the largest tree that was signed; kept when the shard is rebuilt
{s00}:applied            channel the seq that a replica which does not write the chain has just reached
{x:<name>}:state         hash    seq, saved, window, events, journaled, trimmed, version: of the counters of an experiment
{x:<name>}:totals        hash    counters by field; {x:<name>}:latency: histogram of latencies by field
{x:<name>}:journal       list    events and units that Postgres does not hold yet
{x:<name>}:weights       hash    version to weights of Thompson sampling
{x:<name>}:seen:<window>:<bucket>  set  events of a day, 64-bit integers, 49 h
{x:<name>}:dated:<window>  string  which of these buckets exist, one bit each, 49 h
{x:<name>}:units:<bucket>  hash  enrolled units, 64-bit integers, to what they got
{x:<name>}:odd           set     quarantined units
{x:<name>}:laying        string  token of the laying that is under way in a Redis that forgot the experiment
{x:<name>}:told:<kind>:<bucket>  set  units that had an outcome (X), or gave their evidence of a kind, 64-bit integers
{limits}:<policy>:<id>   string  units in a rate limit's bucket and the Unix microsecond they were counted at; until full
{rules}:trial:<rule>:<n>  hash   process to its counts of a rule's trial (JSON); 24 h after the last change
{rules}:samples:<rule>:<n>:<kind>  list  newest samples of a kind of difference, `<id> <JSON>`; 24 h
{locator}:head           hash    incarnation, revision: which data this is, and how many changes it has seen; wall, clock:
                                 two clocks at the last call, of which the second never jumps; evicting, evicted
{locator}:instances      hash    <service>/<id>: what is registered
{locator}:beats          hash    <service>/<id>: clock's ms of the last heartbeat
{locator}:tombstones     zset    <service>/<id>/<generation> that has ended, by the clock's ms until which it is known
{locator}:replicas       zset    replica name by the clock's ms of its last call
{locator}:changes        stream  changes and heartbeats for the other replicas, about the last 1,000 batches
"""

from __future__ import annotations

from typing import Final


def shard_tag(shard: int) -> str:
    """Return the hash tag that starts every key of the shard, for example `{s00}:`."""
    return f"{{s{shard:02d}}}:"


def shard_keys(shard: int) -> tuple[str, str, str]:
    """Return the three keys that every ledger script names: head, outbox, expiry."""
    tag = shard_tag(shard)
    return f"{tag}shard", f"{tag}outbox", f"{tag}expiry"


def applied_channel(shard: int) -> str:
    """Return the pub/sub channel on which replicas tell the writer what they applied."""
    return f"{shard_tag(shard)}applied"


def checkpoint_key(shard: int) -> str:
    """Return the key of what was last signed about the shard's tree."""
    return f"{shard_tag(shard)}checkpoint"


LIMITS_TAG: Final = "{limits}:"  # all limits are in one slot, so that one script call checks many


def limit_key(policy: str, name: str) -> str:
    """Return the key of a rate limit's bucket."""
    return f"{LIMITS_TAG}{policy}:{name}"


def experiment_tag(name: str) -> str:
    """Return the hash tag that starts every key of an experiment's counters: they share a slot."""
    return f"{{x:{name}}}:"


RULES_TAG: Final = "{rules}:"  # all rules are in one slot, so that one connection serves them


def rule_trial_key(rule_id: int, trial: int) -> str:
    """Return the key of what was counted of a rule's trial."""
    return f"{RULES_TAG}trial:{rule_id}:{trial}"


def rule_samples_key(rule_id: int, trial: int, kind: str) -> str:
    """Return the key of the samples of one kind of difference."""
    return f"{RULES_TAG}samples:{rule_id}:{trial}:{kind}"


def experiment_key(name: str, part: str) -> str:
    """Return one key of an experiment's counters."""
    return f"{experiment_tag(name)}{part}"


SHADOW_CLOCK: Final = experiment_key("", "clock")  # sorted set: ms, the latest reading of the clock that replicas share

LOCATOR_TAG: Final = "{locator}:"  # all of the registry is in one slot: one script call, one revision, one stream
LOCATOR_HEAD: Final = f"{LOCATOR_TAG}head"
LOCATOR_INSTANCES: Final = f"{LOCATOR_TAG}instances"
LOCATOR_BEATS: Final = f"{LOCATOR_TAG}beats"
LOCATOR_REPLICAS: Final = f"{LOCATOR_TAG}replicas"
LOCATOR_CHANGES: Final = f"{LOCATOR_TAG}changes"


def locator_keys() -> tuple[str, ...]:
    """Return the keys that the registry's script names, in its order."""
    return (
        LOCATOR_HEAD, LOCATOR_INSTANCES, LOCATOR_BEATS, f"{LOCATOR_TAG}tombstones", LOCATOR_REPLICAS,
        LOCATOR_CHANGES,
    )  # fmt: skip
