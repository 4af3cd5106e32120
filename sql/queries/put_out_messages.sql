-- Put messages out to every endpoint that wants them; a message that is out already is not put out again.
-- Params, one element a message: $1 ids text[], $2 tenants text[], $3 types text[], $4 bodies text[]. Returns the endpoints.
INSERT INTO webhook_deliveries (endpoint_id, message_id, tenant_id, type, body)
SELECT e.endpoint_id, m.id, m.tenant_id, m.type, m.body
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS m (id, tenant_id, type, body)
JOIN webhook_endpoints AS e ON e.deleted_at IS NULL AND e.disabled_at IS NULL
  AND coalesce(e.tenant_id = m.tenant_id, true) AND coalesce(m.type = ANY(e.types), true)
ON CONFLICT (endpoint_id, message_id) DO NOTHING
RETURNING endpoint_id
