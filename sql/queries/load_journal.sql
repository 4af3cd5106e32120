-- Read what experiments remember one by one, events of the last 36 hours and all units. Params: $1 names text[].
SELECT name, kind, packed FROM experiment_journal
WHERE name = ANY ($1) AND (kind <> 'event' OR at > now() - interval '36 hours')
