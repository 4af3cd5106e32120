-- API keys, what is to become an entry of the chain because of them, and how replicas hear of keys and rate limits.
--
-- A key itself is nowhere: only its SHA-256, which is enough for a secret of 190 random bits.
-- The server's role may make, end and date keys; it may not change whose a key is or what it may do, nor delete one.

CREATE TABLE api_keys (
  key_id       text PRIMARY KEY CHECK (key_id ~ '^key_[0-9A-Za-z]{16}$'),
  hash         bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
  shown        text NOT NULL,                 -- the beginning of the key, to recognise it by
  name         text NOT NULL,                 -- what its owner calls it
  role         text NOT NULL CHECK (role IN ('admin', 'operator', 'writer', 'reader', 'auditor')),
  tenants      text[],                        -- null: all tenants
  services     text[],                        -- null: all services
  rate_per_s   double precision CHECK (rate_per_s > 0),  -- null: no limit of its own
  burst        int CHECK (burst > 0),
  created_at   timestamptz NOT NULL DEFAULT now(),
  created_by   text NOT NULL,                 -- key_id of its maker, 'root', or 'console'
  expires_at   timestamptz,
  revoked_at   timestamptz,
  replaced_by  text REFERENCES api_keys,      -- the key that a rotation made for it
  last_used_at timestamptz,                   -- at most a minute old
  CHECK ((rate_per_s IS NULL) = (burst IS NULL)),
  CHECK (cardinality(tenants) > 0 AND cardinality(services) > 0)
);

-- One row, raised in the transaction of every change: replicas compare it once a second.
CREATE TABLE access_revision (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  keys      bigint NOT NULL DEFAULT 0,          -- of api_keys
  rates     bigint NOT NULL DEFAULT 0           -- of the rate limits that accounts have
);
INSERT INTO access_revision DEFAULT VALUES;

CREATE FUNCTION api_keys_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE access_revision SET keys = keys + 1;
  PERFORM pg_notify('shieldx_access', '');
  RETURN NULL;
END $$;

-- The date of last use is no change that a replica must hear of.
CREATE TRIGGER api_keys_changed
AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF hash, role, tenants, services, rate_per_s, burst, expires_at, revoked_at
ON api_keys FOR EACH STATEMENT EXECUTE FUNCTION api_keys_changed();

CREATE FUNCTION account_rates_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE access_revision SET rates = rates + 1;
  PERFORM pg_notify('shieldx_access', '');
  RETURN NULL;
END $$;

-- The statement that moves money names no settings, so that it never meets this.
CREATE TRIGGER account_rates_changed AFTER UPDATE OF settings ON credit_accounts FOR EACH ROW
WHEN (OLD.settings -> 'rate_limit' IS DISTINCT FROM NEW.settings -> 'rate_limit')
EXECUTE FUNCTION account_rates_changed();
CREATE INDEX credit_accounts_rated ON credit_accounts (tenant_id) WHERE settings ? 'rate_limit';

-- Written in the transaction of the change it tells of; one replica hands each to the chain, then dates it.
CREATE TABLE pending_entries (
  entry_id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  at            timestamptz NOT NULL DEFAULT now(),
  kind          text NOT NULL,
  details       json NOT NULL,
  claimed_until timestamptz,
  recorded_at   timestamptz
);
CREATE INDEX pending_entries_open ON pending_entries (at) WHERE recorded_at IS NULL;

CREATE FUNCTION pending_entries_grew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('shieldx_entries', '');
  RETURN NULL;
END $$;
CREATE TRIGGER pending_entries_grew AFTER INSERT ON pending_entries
FOR EACH STATEMENT EXECUTE FUNCTION pending_entries_grew();

GRANT SELECT, INSERT ON api_keys TO shieldx_app;
GRANT UPDATE (expires_at, revoked_at, replaced_by, last_used_at) ON api_keys TO shieldx_app;
GRANT SELECT, UPDATE (keys, rates) ON access_revision TO shieldx_app;
GRANT SELECT, INSERT ON pending_entries TO shieldx_app;
GRANT UPDATE (claimed_until, recorded_at) ON pending_entries TO shieldx_app;
