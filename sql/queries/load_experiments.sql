-- Read experiments with the counters that were saved last, by revision.
-- Params: $1 beyond this revision bigint, $2 only this name text, null for all.
SELECT e.name, e.definition, e.state, e.revision, e.created_at, e.created_by, e.changed_at, c.seq, c.totals, c.latency
FROM experiments AS e JOIN experiment_counters AS c USING (name)
WHERE e.revision > $1 AND ($2::text IS NULL OR e.name = $2)
ORDER BY e.revision
