-- Quotas and low-balance thresholds: their state beside the account, and the alerts that were given.
--
-- All of it is written in the transaction that appends the event behind it, so nothing is told twice or lost.

-- What lua/lib/controls.lua keeps of an account besides its settings: low, used, resets_at_ms, told, count.
ALTER TABLE credit_accounts ADD COLUMN controls jsonb NOT NULL DEFAULT '{}';

-- Which count of the quota a hold belongs to, so that what it does not spend goes back to that count only; null: to none.
ALTER TABLE credit_reservations ADD COLUMN counted bigint;

CREATE TABLE credit_alerts (
  alert_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  alert_id   text NOT NULL UNIQUE,              -- names the entry and what was crossed; the id of the webhook message too
  tenant_id  text NOT NULL,
  type       text NOT NULL,
  at         timestamptz NOT NULL,
  shard      smallint NOT NULL,
  seq        bigint NOT NULL,                   -- the entry behind it
  data       jsonb NOT NULL
);
CREATE INDEX credit_alerts_tenant ON credit_alerts (tenant_id, alert_no);

GRANT SELECT, INSERT ON credit_alerts TO shieldx_app;

-- Put a message out to every endpoint that wants it; a message that is out already is not put out again. Returns them.
CREATE FUNCTION put_out_message(id text, tenant text, kind text, content text) RETURNS SETOF text LANGUAGE sql AS $$
  INSERT INTO webhook_deliveries (endpoint_id, message_id, tenant_id, type, body)
  SELECT endpoint_id, id, tenant, kind, content FROM webhook_endpoints
  WHERE deleted_at IS NULL AND disabled_at IS NULL
    AND coalesce(tenant_id = tenant, true) AND coalesce(kind = ANY(types), true)
  ON CONFLICT (endpoint_id, message_id) DO NOTHING
  RETURNING endpoint_id
$$;

REVOKE ALL ON FUNCTION put_out_message FROM public;
GRANT EXECUTE ON FUNCTION put_out_message TO shieldx_app;

-- Verifications of the whole ledger, one replica each: what was found, and how long the chains were.
CREATE TABLE ledger_verifications (
  verification_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  started_at      timestamptz NOT NULL,
  claimed_until   timestamptz NOT NULL,          -- another replica may begin when this one has not finished by then
  replica         text NOT NULL,
  finished_at     timestamptz,
  faults          int CHECK (faults >= 0),       -- null: it could not be done
  sizes           int8[],                        -- entries of each shard; the next one finds them again, or a tail was cut
  report          jsonb
);
CREATE INDEX ledger_verifications_started ON ledger_verifications (started_at);
CREATE UNIQUE INDEX ledger_verifications_one ON ledger_verifications ((true)) WHERE finished_at IS NULL;

GRANT SELECT, INSERT ON ledger_verifications TO shieldx_app;
GRANT UPDATE (claimed_until, finished_at, faults, sizes, report) ON ledger_verifications TO shieldx_app;

-- The verifier keys that a log has been signed with. A receipt outlives the key that signed it.
CREATE TABLE log_keys (
  shard      smallint NOT NULL,
  vkey       text NOT NULL,
  since      timestamptz NOT NULL DEFAULT now(),
  from_size  bigint NOT NULL,                    -- no checkpoint below this size is signed by it
  retired_at timestamptz,                        -- null while it signs
  until_size bigint,                             -- no checkpoint above this size is signed by it
  PRIMARY KEY (shard, vkey)
);

GRANT SELECT, INSERT ON log_keys TO shieldx_app;
GRANT UPDATE (retired_at, until_size) ON log_keys TO shieldx_app;

-- The processes that serve this ledger: each dates its row, so that all know how many they are.
CREATE TABLE replicas (
  replica text PRIMARY KEY,
  seen_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, UPDATE, DELETE ON replicas TO shieldx_app;
