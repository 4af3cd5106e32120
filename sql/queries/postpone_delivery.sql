-- Note a failed attempt and when the next one is due; a pause holds for the endpoint's other deliveries too.
-- Params: $1 delivery id bigint, $2 the attempt that tells int, $3 seconds until the next float8, $4 HTTP status int or
-- null, $5 error text, $6 seconds of pause float8 or null. Without effect if a later attempt has begun.
WITH late AS (
  UPDATE webhook_deliveries
  SET next_at = now() + make_interval(secs => $3), claimed_until = NULL, last_status = $4, last_error = $5
  WHERE delivery_id = $1 AND attempts = $2::int AND state = 'pending'
  RETURNING endpoint_id
)
UPDATE webhook_endpoints AS e SET not_before = greatest(e.not_before, now() + make_interval(secs => $6::float8))
FROM late WHERE e.endpoint_id = late.endpoint_id AND $6::float8 IS NOT NULL
