-- Messages of webhooks wait in a table of their own until a replica makes a delivery of each for every endpoint.
-- service: credits
-- migrate: compatible
--
-- They became deliveries in the transaction of the entry, which everybody's entries wait for: thousands of endpoints, or a
-- batch in which a balance crosses its threshold five hundred times, held a shard up for longer than its writer may be
-- silent. Now an alert costs that transaction one row, whoever wants to be told. A replica of the release before puts
-- messages in here as well; that they go out takes one of this release.

CREATE TABLE webhook_messages (
  message_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  message_id text NOT NULL UNIQUE CHECK (message_id ~ '^[A-Za-z0-9_-]{1,100}$'),
  tenant_id  text NOT NULL,
  type       text NOT NULL,
  body       text NOT NULL CHECK (octet_length(body) <= 20000)
) WITH (autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);  -- rows stay for about a second
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_messages TO shieldx_app;  -- UPDATE to lock

-- Returns nothing: endpoints are found later.
CREATE OR REPLACE FUNCTION put_out_message(id text, tenant text, kind text, content text)
RETURNS SETOF text LANGUAGE sql AS $$
  INSERT INTO webhook_messages (message_id, tenant_id, type, body) VALUES (id, tenant, kind, content)
  ON CONFLICT (message_id) DO NOTHING
  RETURNING NULL::text
$$;
