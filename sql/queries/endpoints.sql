-- Endpoints by id. Params: $1 the id before the first text, $2 how many int, $3 one id text or null,
-- $4 tenants text[] or null to which they are limited.
SELECT endpoint_id, tenant_id, url, types, description, created_at, created_by, signing_key_id, secret_version,
       old_secret_until, disabled_at, disabled_for
FROM webhook_endpoints
WHERE deleted_at IS NULL AND endpoint_id > $1 AND ($3::text IS NULL OR endpoint_id = $3)
  AND ($4::text[] IS NULL OR tenant_id = ANY ($4::text[]))
ORDER BY endpoint_id LIMIT $2
