-- Keep the counts of one process, each row as it stands now. Params: $1 rule ids bigint[], $2 their trials int[],
-- $3 process text, $4 counts text[] (JSON). Returns nothing.
INSERT INTO rule_tallies (rule_id, trial, process, tally)
SELECT given.rule_id, given.trial, $3, given.tally FROM unnest($1::bigint[], $2::int[], $4::text[]) AS given (rule_id, trial, tally)
ON CONFLICT (rule_id, trial, process) DO UPDATE SET tally = excluded.tally, saved_at = now()
