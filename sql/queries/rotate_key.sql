-- Make the successor of a key that is in use and has none, and date the end of the old one. Params: $1 old key id text,
-- $2 new key id text, $3 hash bytea, $4 shown text, $5 maker text, $6 expiry of the new one timestamptz or null,
-- $7 seconds that both are valid float8, $8 details text (JSON). Returns the new one, with the end of the old one last.
WITH old AS (
  SELECT * FROM api_keys
  WHERE key_id = $1 AND revoked_at IS NULL AND replaced_by IS NULL AND coalesce(expires_at > now(), true)
  FOR UPDATE
), made AS (
  INSERT INTO api_keys (key_id, hash, shown, name, role, tenants, services, rate_per_s, burst, created_by, expires_at)
  SELECT $2, $3, $4, name, role, tenants, services, rate_per_s, burst, $5, $6 FROM old
  RETURNING *
), ended AS (
  UPDATE api_keys AS k SET replaced_by = $2, expires_at = least(k.expires_at, now() + make_interval(secs => $7))
  FROM old WHERE k.key_id = old.key_id
  RETURNING k.expires_at
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'key.rotate', $8::text::json FROM made
)
SELECT made.key_id, made.shown, made.name, made.role, made.tenants, made.services, made.rate_per_s, made.burst,
       made.created_at, made.created_by, made.expires_at, made.revoked_at, made.replaced_by, made.last_used_at,
       ended.expires_at AS old_expires_at
FROM made, ended
