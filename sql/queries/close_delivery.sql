-- Note that a delivery has arrived, or is given up. Params: $1 delivery id bigint, $2 the attempt that tells int,
-- $3 state text, $4 HTTP status int or null, $5 error text or null. Without effect if a later attempt has begun.
UPDATE webhook_deliveries
SET state = $3, closed_at = now(), claimed_until = NULL, last_status = $4, last_error = $5
WHERE delivery_id = $1 AND attempts = $2::int AND state = 'pending'
RETURNING delivery_id
