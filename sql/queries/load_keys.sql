-- All keys that a replica has to know: those in use, and those that ended lately, so that a denial can name them.
-- Params: $1 days for which an ended key is still named int.
SELECT hash, key_id, role, tenants, services, rate_per_s, burst, expires_at, revoked_at
FROM api_keys
WHERE coalesce(least(revoked_at, expires_at) > now() - make_interval(days => $1), true)
