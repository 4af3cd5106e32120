-- Send an endpoint nothing more, give up what waits for it, and say so in the chain. Params: $1 endpoint id text,
-- $2 reason text, $3 details text (JSON). Returns it, or nothing if it was disabled before.
WITH off AS (
  UPDATE webhook_endpoints SET disabled_at = now(), disabled_for = $2
  WHERE endpoint_id = $1 AND disabled_at IS NULL AND deleted_at IS NULL
  RETURNING endpoint_id
), given_up AS (
  UPDATE webhook_deliveries AS d SET state = 'failed', closed_at = now(), claimed_until = NULL, last_error = 'disabled'
  FROM off WHERE d.endpoint_id = off.endpoint_id AND d.state = 'pending'
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'webhook.disable', $3::text::json FROM off
)
SELECT endpoint_id FROM off
