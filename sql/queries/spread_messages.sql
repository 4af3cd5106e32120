-- Make deliveries of the messages that wait, oldest first, for every endpoint that wants them; each message once, whoever
-- else is at it. Params: $1 deliveries at most int; one message goes in any case. Returns messages and deliveries.
WITH oldest AS MATERIALIZED (  -- once: planned within a join for a table that was empty, it is run again for each message
  SELECT message_no FROM webhook_messages ORDER BY message_no
  LIMIT greatest(1, $1::int / greatest(1, (SELECT count(*) FROM webhook_endpoints
                                           WHERE deleted_at IS NULL AND disabled_at IS NULL)))
  FOR UPDATE SKIP LOCKED
), taken AS (
  DELETE FROM webhook_messages AS w USING oldest AS o WHERE w.message_no = o.message_no
  RETURNING w.message_id, w.tenant_id, w.type, w.body
), made AS (
  INSERT INTO webhook_deliveries (endpoint_id, message_id, tenant_id, type, body)
  SELECT e.endpoint_id, m.message_id, m.tenant_id, m.type, m.body
  FROM taken AS m JOIN webhook_endpoints AS e
    ON coalesce(e.tenant_id = m.tenant_id, true) AND coalesce(m.type = ANY (e.types), true)
  WHERE e.deleted_at IS NULL AND e.disabled_at IS NULL
  ON CONFLICT (endpoint_id, message_id) DO NOTHING
  RETURNING 1
)
SELECT (SELECT count(*) FROM taken) AS messages, (SELECT count(*) FROM made) AS deliveries
