-- Take what is to be recorded and nobody else is at, oldest first. Params: $1 how many int, $2 seconds until another
-- replica may take it float8.
UPDATE pending_entries AS p SET claimed_until = now() + make_interval(secs => $2)
FROM (
  SELECT entry_id FROM pending_entries
  WHERE recorded_at IS NULL AND coalesce(claimed_until < now(), true)
  ORDER BY at LIMIT $1
  FOR UPDATE SKIP LOCKED
) AS free
WHERE p.entry_id = free.entry_id
RETURNING p.entry_id, p.at, p.kind, p.details::text AS details
