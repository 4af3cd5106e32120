-- End a key at once. Params: $1 key id text, $2 details text (JSON). Returns it, or nothing if it had ended before.
WITH ended AS (
  UPDATE api_keys SET revoked_at = now() WHERE key_id = $1 AND revoked_at IS NULL RETURNING *
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'key.revoke', $2::text::json FROM ended
)
SELECT key_id, shown, name, role, tenants, services, rate_per_s, burst, created_at, created_by, expires_at, revoked_at,
       replaced_by, last_used_at
FROM ended
