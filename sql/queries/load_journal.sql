-- Read a page of what experiments remember one by one: events of the last 36 hours, and all units.
-- Params: $1 names text[], $2 beyond this id bigint, $3 most rows int.
SELECT id, name, kind, packed FROM experiment_journal
WHERE name = ANY ($1) AND id > $2 AND (kind <> 'event' OR at > now() - interval '36 hours')
ORDER BY id LIMIT $3
