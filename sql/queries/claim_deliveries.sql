-- Take due deliveries that nobody else is at, those due for longest first, a few of each endpoint and of each tenant.
-- Params: $1 how many int, $2 of one endpoint at most int, $3 endpoints to leave out text[], $4 seconds until another
-- replica may take them float8, $5 of one owner at most int, less what is under way: $6 owners text[], $7 attempts of each
-- int[]. The owner is the tenant; an endpoint for all tenants is its own. An attempt counts from here on, whatever becomes
-- of it.
UPDATE webhook_deliveries AS d
SET attempts = d.attempts + 1, claimed_until = now() + make_interval(secs => $4)
FROM (
  SELECT * FROM (
    SELECT due.delivery_id, due.next_at, e.url, e.signing_key_id, e.secret_version,
           coalesce(e.old_secret_until > now(), false) AS old_secret_signs,
           coalesce(e.tenant_id, e.endpoint_id) AS owner, coalesce(busy.attempts, 0) AS under_way,
           row_number() OVER (PARTITION BY coalesce(e.tenant_id, e.endpoint_id) ORDER BY due.next_at) AS turn
    FROM webhook_endpoints AS e
    LEFT JOIN unnest($6::text[], $7::int[]) AS busy (owner, attempts) ON busy.owner = coalesce(e.tenant_id, e.endpoint_id)
    CROSS JOIN LATERAL (
      SELECT delivery_id, next_at FROM webhook_deliveries
      WHERE endpoint_id = e.endpoint_id AND state = 'pending' AND next_at <= now() AND coalesce(claimed_until < now(), true)
      ORDER BY next_at LIMIT $2
      FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE e.deleted_at IS NULL AND e.disabled_at IS NULL AND coalesce(e.not_before <= now(), true)
      AND e.endpoint_id <> ALL ($3::text[]) AND coalesce(busy.attempts, 0) < $5
  ) AS found
  WHERE turn <= $5 - under_way ORDER BY next_at LIMIT $1
) AS free
WHERE d.delivery_id = free.delivery_id
RETURNING d.delivery_id, d.endpoint_id, d.message_id, d.body, d.attempts, free.url, free.signing_key_id,
          free.secret_version, free.old_secret_signs, free.owner
