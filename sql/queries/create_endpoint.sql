-- Make an endpoint and what the chain is to say of it, unless there are too many. Params: $1 endpoint id text,
-- $2 tenant text or null, $3 url text, $4 types text[] or null, $5 description text or null, $6 maker text,
-- $7 signing key id text, $8 endpoints at most int, $9 details text (JSON), $10 of one tenant, or for all of them, at most int.
-- Returns it.
WITH made AS (
  INSERT INTO webhook_endpoints (endpoint_id, tenant_id, url, types, description, created_by, signing_key_id)
  SELECT $1, $2, $3, $4, $5, $6, $7
  WHERE (SELECT count(*) FROM webhook_endpoints WHERE deleted_at IS NULL) < $8::int
    AND (SELECT count(*) FROM webhook_endpoints WHERE deleted_at IS NULL AND tenant_id IS NOT DISTINCT FROM $2) < $10::int
  RETURNING *
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'webhook.create', $9::text::json FROM made
)
SELECT endpoint_id, tenant_id, url, types, description, created_at, created_by, signing_key_id, secret_version,
       old_secret_until, disabled_at, disabled_for
FROM made
