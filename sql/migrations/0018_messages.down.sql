-- Messages become deliveries in the transaction of their entry again; those that wait become some now.
CREATE OR REPLACE FUNCTION put_out_message(id text, tenant text, kind text, content text)
RETURNS SETOF text LANGUAGE sql AS $$
  INSERT INTO webhook_deliveries (endpoint_id, message_id, tenant_id, type, body)
  SELECT endpoint_id, id, tenant, kind, content FROM webhook_endpoints
  WHERE deleted_at IS NULL AND disabled_at IS NULL
    AND coalesce(tenant_id = tenant, true) AND coalesce(kind = ANY(types), true)
  ON CONFLICT (endpoint_id, message_id) DO NOTHING
  RETURNING endpoint_id
$$;
SELECT put_out_message(message_id, tenant_id, type, body) FROM webhook_messages;
DROP TABLE webhook_messages;
