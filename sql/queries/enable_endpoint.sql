-- Send an endpoint messages again, from now on, and say so in the chain. Params: $1 endpoint id text,
-- $2 details text (JSON). Returns its id, or nothing if it was not disabled.
WITH again AS (
  UPDATE webhook_endpoints SET disabled_at = NULL, disabled_for = NULL, not_before = NULL
  WHERE endpoint_id = $1 AND deleted_at IS NULL AND disabled_at IS NOT NULL
  RETURNING endpoint_id
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'webhook.enable', $2::text::json FROM again
)
SELECT endpoint_id FROM again
