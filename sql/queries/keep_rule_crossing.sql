-- Keep the first crossing of a rule's trial, and say so in the chain; a later one changes nothing. Params: $1 rule id bigint,
-- $2 trial int, $3 inputs text (JSON), $4 details of the entry text (JSON). Returns nothing.
WITH kept AS (
  INSERT INTO rule_crossings (rule_id, trial, inputs) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING rule_id
)
INSERT INTO pending_entries (kind, details) SELECT 'rule.crossing', $4::text::json FROM kept
