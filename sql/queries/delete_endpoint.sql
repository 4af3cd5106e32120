-- Take an endpoint away, with what waits for it, and say so in the chain. Params: $1 endpoint id text,
-- $2 details text (JSON). Returns its id, or nothing if it was not there.
WITH gone AS (
  UPDATE webhook_endpoints SET deleted_at = now() WHERE endpoint_id = $1 AND deleted_at IS NULL RETURNING endpoint_id
), given_up AS (
  UPDATE webhook_deliveries AS d SET state = 'failed', closed_at = now(), claimed_until = NULL, last_error = 'deleted'
  FROM gone WHERE d.endpoint_id = gone.endpoint_id AND d.state = 'pending'
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'webhook.delete', $2::text::json FROM gone
)
SELECT endpoint_id FROM gone
