-- The ledger: shards, their chains, and the state that the chains fold to.
--
-- Prefixes: ledger_ one row per ledger or shard; audit_ the chain; credit_ folded from it.
-- Amounts and balances are whole credits, 0 to 10^14 - 1. Times are UTC.
-- The role shieldx_app is what the server runs as; it may append to the chain, never change it.

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'shieldx_app') THEN
    CREATE ROLE shieldx_app NOLOGIN;
  END IF;
END $$;

CREATE TABLE ledger (
  singleton      boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  ledger_id      uuid NOT NULL DEFAULT gen_random_uuid(),
  origin         text NOT NULL,
  shard_count    smallint NOT NULL CHECK (shard_count BETWEEN 1 AND 4096),
  -- Keys the hashes of idempotency keys, so that nobody outside can probe which keys were used.
  idempotency_salt bytea NOT NULL CHECK (length(idempotency_salt) = 32),
  created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger_shards (
  shard      smallint PRIMARY KEY,
  epoch      bigint NOT NULL DEFAULT 0,      -- raised by every new writer: fences the one before
  generation bigint NOT NULL DEFAULT 0,      -- raised whenever Redis is another incarnation
  run_id     text NOT NULL DEFAULT '',       -- the Redis incarnation of this generation
  head_seq   bigint NOT NULL DEFAULT -1,     -- last durable seq; -1 while the chain is empty
  head_hash  bytea NOT NULL CHECK (length(head_hash) = 32),
  writer     text NOT NULL DEFAULT '',       -- name of the replica that writes, for people
  beat_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_entries (
  shard          smallint NOT NULL,
  seq            bigint NOT NULL CHECK (seq >= 0),
  at             timestamptz NOT NULL,
  transaction_id uuid NOT NULL,
  tenant_id      text NOT NULL,
  type           text NOT NULL,
  amount         bigint NOT NULL CHECK (amount BETWEEN 0 AND 99999999999999),
  balance        bigint NOT NULL CHECK (balance BETWEEN 0 AND 99999999999999),
  reserved       bigint NOT NULL CHECK (reserved BETWEEN 0 AND balance),
  version        bigint NOT NULL,
  entry          bytea NOT NULL,
  hash           bytea NOT NULL CHECK (length(hash) = 32),
  prev_hash      bytea NOT NULL CHECK (length(prev_hash) = 32),
  signature      bytea NOT NULL CHECK (length(signature) = 32),
  key_id         text NOT NULL,
  PRIMARY KEY (shard, seq, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_entries_tenant ON audit_entries (tenant_id, seq);
CREATE INDEX audit_entries_at ON audit_entries USING brin (at) WITH (pages_per_range = 32);

CREATE TABLE credit_accounts (
  tenant_id   text PRIMARY KEY,
  shard       smallint NOT NULL,
  balance     bigint NOT NULL CHECK (balance BETWEEN 0 AND 99999999999999),
  reserved    bigint NOT NULL CHECK (reserved BETWEEN 0 AND balance),
  incoming    bigint NOT NULL DEFAULT 0 CHECK (incoming >= 0),
  version     bigint NOT NULL,
  created_at  timestamptz NOT NULL,
  updated_at  timestamptz NOT NULL,
  settings    jsonb NOT NULL DEFAULT '{}'     -- low_balance_threshold, quota, rate_limit, metadata: each as JSON text
) WITH (fillfactor = 50);   -- half-empty pages keep the balance updates HOT: no index is touched

-- reservation_id is a UUIDv7, so its range is its time: partitions by quarter need no second column.
CREATE TABLE credit_reservations (
  reservation_id uuid PRIMARY KEY,
  shard       smallint NOT NULL,
  tenant_id   text NOT NULL,
  amount      bigint NOT NULL CHECK (amount BETWEEN 1 AND 99999999999999),
  committed   bigint NOT NULL DEFAULT 0 CHECK (committed BETWEEN 0 AND amount),
  status      text NOT NULL CHECK (status IN ('held', 'committed', 'aborted', 'expired')),
  purpose     text NOT NULL CHECK (purpose IN ('spend', 'transfer_out', 'transfer_in')),
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz,                   -- null: held until its transfer is decided
  closed_at   timestamptz,
  closed_seq  bigint,                        -- the event that ended it
  transfer_id uuid,                          -- of a leg of a two-phase commit
  description text,
  metadata    text
) PARTITION BY RANGE (reservation_id);
CREATE INDEX credit_reservations_tenant ON credit_reservations (tenant_id, reservation_id);
CREATE INDEX credit_reservations_transfer ON credit_reservations (transfer_id) WHERE transfer_id IS NOT NULL;
CREATE INDEX credit_reservations_held ON credit_reservations (shard) WHERE status = 'held';

CREATE TABLE credit_refunds (
  transaction_id uuid PRIMARY KEY,
  consumed  bigint NOT NULL CHECK (consumed > 0),
  refunded  bigint NOT NULL CHECK (refunded BETWEEN 0 AND consumed)
);

-- Answers that changed nothing (refusals) and the claims of batch keys; the applied ones are in the chain.
CREATE TABLE credit_answers (
  idempotency bytea PRIMARY KEY CHECK (length(idempotency) = 16),
  shard       smallint NOT NULL,
  fingerprint bytea NOT NULL CHECK (length(fingerprint) = 16),
  answer      text NOT NULL,
  at          timestamptz NOT NULL
);
CREATE INDEX credit_answers_at ON credit_answers (at);

-- Transactions over tenants of two or more shards: two-phase commit, decided here.
CREATE TABLE credit_transfers (
  transaction_id uuid PRIMARY KEY,
  idempotency bytea NOT NULL UNIQUE CHECK (length(idempotency) = 16),
  fingerprint bytea NOT NULL CHECK (length(fingerprint) = 16),
  state       text NOT NULL CHECK (state IN ('preparing', 'committing', 'aborting', 'committed', 'aborted')),
  legs        jsonb NOT NULL,
  refusal     jsonb,
  created_at  timestamptz NOT NULL DEFAULT now(),
  decided_at  timestamptz
);
CREATE INDEX credit_transfers_open ON credit_transfers (created_at) WHERE state NOT IN ('committed', 'aborted');

-- The lowest UUIDv7 of an instant.
CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Make the quarterly partitions from the quarter of `since` to `ahead` quarters after that of `until`.
-- Returns how many were made. Runs as its owner: the server's role may not create tables by itself.
CREATE FUNCTION ensure_partitions(since timestamptz, until timestamptz, ahead int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  first_day date := date_trunc('quarter', since AT TIME ZONE 'UTC')::date;
  last_day  date := date_trunc('quarter', until AT TIME ZONE 'UTC')::date + (ahead * interval '3 months');
  next_day  date;
  label     text;
  made      int := 0;
BEGIN
  IF ahead < 0 OR ahead > 40 OR last_day - first_day > 36600 THEN
    RAISE EXCEPTION 'ensure_partitions: the range % to % is too wide', first_day, last_day;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('shieldx partitions'));
  WHILE first_day <= last_day LOOP
    next_day := (first_day + interval '3 months')::date;
    label := to_char(first_day, 'YYYY"q"Q');
    IF to_regclass('audit_entries_' || label) IS NULL THEN
      EXECUTE format('CREATE TABLE %I PARTITION OF audit_entries FOR VALUES FROM (%L) TO (%L)',
        'audit_entries_' || label, first_day || ' 00:00:00+00', next_day || ' 00:00:00+00');
      made := made + 1;
    END IF;
    IF to_regclass('credit_reservations_' || label) IS NULL THEN
      EXECUTE format('CREATE TABLE %I PARTITION OF credit_reservations FOR VALUES FROM (%L) TO (%L)',
        'credit_reservations_' || label,
        uuid7_floor((first_day || ' 00:00:00+00')::timestamptz),
        uuid7_floor((next_day || ' 00:00:00+00')::timestamptz));
      made := made + 1;
    END IF;
    first_day := next_day;
  END LOOP;
  RETURN made;
END $$;

GRANT USAGE ON SCHEMA public TO shieldx_app;
GRANT SELECT ON ledger TO shieldx_app;
GRANT SELECT, UPDATE ON ledger_shards TO shieldx_app;
GRANT SELECT, INSERT ON audit_entries TO shieldx_app;
GRANT SELECT, INSERT, UPDATE ON credit_accounts, credit_reservations, credit_refunds, credit_transfers TO shieldx_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON credit_answers TO shieldx_app;
GRANT EXECUTE ON FUNCTION ensure_partitions(timestamptz, timestamptz, int) TO shieldx_app;
