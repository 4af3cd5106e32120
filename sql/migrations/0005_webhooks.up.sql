-- Webhooks: who wants to be told what, and what is still to be told.
--
-- A message is written here in the transaction of what it tells of; each row is one message for one endpoint, and is
-- delivered at least once. No secret is stored: an endpoint's is derived from a key of the server and its version.

CREATE TABLE webhook_endpoints (
  endpoint_id      text PRIMARY KEY CHECK (endpoint_id ~ '^whe_[0-9A-Za-z]{16}$'),
  tenant_id        text,                        -- null: messages of all tenants
  url              text NOT NULL,
  types            text[] CHECK (cardinality(types) > 0),  -- null: all types
  description      text,
  created_at       timestamptz NOT NULL DEFAULT now(),
  created_by       text NOT NULL,               -- key_id
  signing_key_id   text NOT NULL,               -- which key of the server its secret is derived from
  secret_version   int NOT NULL DEFAULT 1 CHECK (secret_version > 0),
  old_secret_until timestamptz,                 -- the secret of the version before signs too until then
  not_before       timestamptz,                 -- it asked for a pause
  disabled_at      timestamptz,
  disabled_for     text CHECK (disabled_for IN ('gone', 'exhausted')),
  deleted_at       timestamptz,
  CHECK ((disabled_at IS NULL) = (disabled_for IS NULL))
);

CREATE TABLE webhook_deliveries (
  delivery_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  endpoint_id   text NOT NULL REFERENCES webhook_endpoints,
  message_id    text NOT NULL CHECK (message_id ~ '^[A-Za-z0-9_-]{1,100}$'),
  tenant_id     text NOT NULL,
  type          text NOT NULL,
  body          text NOT NULL CHECK (octet_length(body) <= 20000),
  created_at    timestamptz NOT NULL DEFAULT now(),
  state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
  attempts      smallint NOT NULL DEFAULT 0,
  next_at       timestamptz NOT NULL DEFAULT now(),
  claimed_until timestamptz,                    -- a replica is at it
  last_status   smallint,
  last_error    text,
  closed_at     timestamptz,
  UNIQUE (endpoint_id, message_id)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_closed ON webhook_deliveries (closed_at) WHERE state <> 'pending';

GRANT SELECT, INSERT, UPDATE ON webhook_endpoints TO shieldx_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_deliveries TO shieldx_app;
