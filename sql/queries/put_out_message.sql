-- Put a message out to every endpoint that wants it; a message that is out already is not put out again.
-- Params: $1 message id text, $2 tenant text, $3 type text, $4 body text. Returns the endpoints.
INSERT INTO webhook_deliveries (endpoint_id, message_id, tenant_id, type, body)
SELECT endpoint_id, $1, $2, $3, $4 FROM webhook_endpoints
WHERE deleted_at IS NULL AND disabled_at IS NULL
  AND coalesce(tenant_id = $2, true) AND coalesce($3 = ANY(types), true)
ON CONFLICT (endpoint_id, message_id) DO NOTHING
RETURNING endpoint_id
