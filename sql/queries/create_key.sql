-- Make a key and what the chain is to say of it, unless there are too many. Params: $1 key id text, $2 hash bytea,
-- $3 shown text, $4 name text, $5 role text, $6 tenants text[] or null, $7 services text[] or null, $8 tokens a second
-- or null, $9 burst int or null, $10 maker text, $11 expiry timestamptz or null, $12 keys at most int,
-- $13 details text (JSON). Returns it.
WITH made AS (
  INSERT INTO api_keys (key_id, hash, shown, name, role, tenants, services, rate_per_s, burst, created_by, expires_at)
  SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11
  WHERE (SELECT count(*) FROM api_keys WHERE revoked_at IS NULL AND coalesce(expires_at > now(), true)) < $12::int
  RETURNING *
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'key.create', $13::text::json FROM made
)
SELECT key_id, shown, name, role, tenants, services, rate_per_s, burst, created_at, created_by, expires_at, revoked_at,
       replaced_by, last_used_at
FROM made
