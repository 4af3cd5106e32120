-- Deliveries of an endpoint, newest first. Params: $1 endpoint id text, $2 below this id bigint, $3 how many int.
SELECT delivery_id, message_id, tenant_id, type, state, attempts, created_at, next_at, last_status, last_error, closed_at
FROM webhook_deliveries WHERE endpoint_id = $1 AND delivery_id < $2
ORDER BY delivery_id DESC LIMIT $3
