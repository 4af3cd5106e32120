-- Keep samples, and of each kind of a trial only the newest. Params: $1 rule ids bigint[], $2 trials int[], $3 kinds text[],
-- $4 sample ids text[], $5 samples text[] (JSON), $6 how many of a kind stay int. Returns nothing.
-- What is inserted here is not seen by the DELETE, so that up to twice as many stay until the next call.
WITH gone AS (
  DELETE FROM rule_samples AS s USING (
    SELECT rule_id, trial, kind, sample_id,
           row_number() OVER (PARTITION BY rule_id, trial, kind ORDER BY sample_id DESC) AS place
    FROM rule_samples WHERE rule_id = ANY ($1::bigint[])
  ) AS old
  WHERE old.place > $6::int AND s.rule_id = old.rule_id AND s.trial = old.trial AND s.kind = old.kind
    AND s.sample_id = old.sample_id
)
INSERT INTO rule_samples (rule_id, trial, kind, sample_id, sample)
SELECT * FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::text[]) ON CONFLICT DO NOTHING
