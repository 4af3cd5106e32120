-- Tables of the plain-Postgres ledger that the harness compares with.
--
-- An account row carries the head of its own hash chain: accounts do not wait for one another, and the row
-- lock that a debit needs anyway also orders the chain. `previous_hash` keeps the head before the last
-- debit, so that one UPDATE can return both ends of the new link. Pages are left a third empty, so that an
-- UPDATE finds room on the same page and touches no index.
-- One entry is the transaction, the audit record and the idempotency record: one row, two indexes.
-- There is no foreign key: the statement that writes an entry has just locked its account, and the check would
-- cost a query per request.

CREATE TABLE IF NOT EXISTS accounts (
    tenant_id     text PRIMARY KEY,
    balance       bigint NOT NULL CHECK (balance >= 0),
    version       bigint NOT NULL DEFAULT 0,
    previous_hash bytea NOT NULL DEFAULT '\x',
    head_hash     bytea NOT NULL DEFAULT '\x'
) WITH (fillfactor = 66);

CREATE TABLE IF NOT EXISTS entries (
    tenant_id       text NOT NULL,
    version         bigint NOT NULL,
    amount          bigint NOT NULL CHECK (amount > 0),
    balance         bigint NOT NULL,
    transaction_id  uuid NOT NULL,
    created_at      timestamptz NOT NULL,
    idempotency_key text NOT NULL,
    previous_hash   bytea NOT NULL,
    hash            bytea NOT NULL,
    PRIMARY KEY (tenant_id, version),
    CONSTRAINT entries_idempotency_key UNIQUE (idempotency_key)
);
