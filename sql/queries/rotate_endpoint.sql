-- Give an endpoint its next secret; the one before signs too for a while. Params: $1 endpoint id text,
-- $2 the version that it has int, $3 signing key id of the next text, $4 seconds that both sign float8,
-- $5 details text (JSON). Returns the end of the old one, or nothing if the version was another.
-- The old secret goes on only if both are derived from the same key.
WITH next AS (
  UPDATE webhook_endpoints
  SET secret_version = secret_version + 1, signing_key_id = $3,
      old_secret_until = CASE WHEN signing_key_id = $3 THEN now() + make_interval(secs => $4) END
  WHERE endpoint_id = $1 AND secret_version = $2::int AND deleted_at IS NULL
  RETURNING old_secret_until
), told AS (
  INSERT INTO pending_entries (kind, details) SELECT 'webhook.rotate', $5::text::json FROM next
)
SELECT old_secret_until FROM next
