-- Keys by id, ended ones too. Params: $1 the id before the first text, $2 how many int, $3 one id text or null,
-- $4 tenants text[] or null and $5 services text[] or null that hold all that a shown key may reach.
SELECT key_id, shown, name, role, tenants, services, rate_per_s, burst, created_at, created_by, expires_at, revoked_at,
       replaced_by, last_used_at
FROM api_keys
WHERE key_id > $1 AND ($3::text IS NULL OR key_id = $3)
  AND ($4::text[] IS NULL OR tenants <@ $4::text[]) AND ($5::text[] IS NULL OR services <@ $5::text[])
ORDER BY key_id LIMIT $2
