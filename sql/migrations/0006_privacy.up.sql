-- Payment and personal data, apart from the chain: the chain holds a commitment, these tables what can be destroyed.
--
-- private_keys     one data key per subject, wrapped by a master key that is not in this database
-- private_records  what is known of a subject, by the operation that brought it; values only encrypted or masked
-- private_erasures what was destroyed, and the tombstone that the chain gets; never who it was
CREATE TABLE private_keys (
  subject    text PRIMARY KEY CHECK (length(subject) BETWEEN 1 AND 128),
  dek_id     bytea NOT NULL UNIQUE CHECK (length(dek_id) = 16),
  kek_id     bytea NOT NULL CHECK (length(kek_id) = 8),       -- the master key that wraps it now
  wrapped    bytea NOT NULL CHECK (length(wrapped) = 40),     -- AES-KWP, RFC 5649
  created_at timestamptz NOT NULL,
  UNIQUE (subject, dek_id)
) WITH (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);   -- what was destroyed leaves the disk soon
CREATE INDEX private_keys_kek ON private_keys (kek_id, subject);

CREATE TABLE private_records (
  record_id  text PRIMARY KEY CHECK (length(record_id) BETWEEN 1 AND 64),   -- hash of the idempotency key of the operation
  class      text NOT NULL CHECK (class ~ '^[a-z][a-z_]{0,31}$'),           -- decides how long it is kept
  tenant_id  text NOT NULL,
  subject    text NOT NULL,
  dek_id     bytea NOT NULL,
  commitment bytea NOT NULL CHECK (length(commitment) = 32),                -- stands in the chain too
  shown      jsonb NOT NULL,                                                -- masked values
  salt       bytea NOT NULL,                                                -- encrypted, like values
  sealed     bytea NOT NULL,
  created_at timestamptz NOT NULL,
  FOREIGN KEY (subject, dek_id) REFERENCES private_keys (subject, dek_id)
) WITH (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX private_records_subject ON private_records (subject, dek_id);
CREATE INDEX private_records_age ON private_records (class, created_at);
CREATE INDEX private_records_tenant ON private_records (tenant_id, created_at);

CREATE TABLE private_erasures (
  erasure_id uuid PRIMARY KEY,
  kind       text NOT NULL CHECK (kind IN ('privacy.erasure', 'privacy.retention')),
  tombstone  text NOT NULL CHECK (length(tombstone) <= 4096),  -- canonical JSON of the entry's details
  erased_at  timestamptz NOT NULL,
  entered_at timestamptz                                       -- null until the tombstone is in the chain
);
CREATE INDEX private_erasures_open ON private_erasures (erased_at) WHERE entered_at IS NULL;

GRANT SELECT, INSERT, DELETE ON private_keys, private_records TO shieldx_app;
GRANT UPDATE (kek_id, wrapped) ON private_keys TO shieldx_app;
GRANT SELECT, INSERT ON private_erasures TO shieldx_app;
GRANT UPDATE (entered_at) ON private_erasures TO shieldx_app;
