-- Read the newest samples of a trial. Params: $1 rule id bigint, $2 trial int, $3 how many of each kind int.
SELECT kind, sample_id, sample FROM (
  SELECT kind, sample_id, sample, row_number() OVER (PARTITION BY kind ORDER BY sample_id DESC) AS place
  FROM rule_samples WHERE rule_id = $1 AND trial = $2
) AS found WHERE place <= $3::int
