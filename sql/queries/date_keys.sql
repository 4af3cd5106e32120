-- Note when keys were last used. Params: $1 key ids text[], $2 times timestamptz[]. Rows are locked in one order.
UPDATE api_keys AS k SET last_used_at = greatest(k.last_used_at, used.at)
FROM (
  SELECT locked.key_id, u.at
  FROM unnest($1::text[], $2::timestamptz[]) AS u (key_id, at)
  JOIN api_keys AS locked USING (key_id)
  ORDER BY locked.key_id
  FOR UPDATE OF locked
) AS used
WHERE k.key_id = used.key_id
