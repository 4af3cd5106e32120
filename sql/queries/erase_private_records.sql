-- Destroy a subject's private records. Params: $1 subject text. Returns: how many of each class.
WITH gone AS (DELETE FROM private_records WHERE subject = $1 RETURNING class)
SELECT class, count(*) AS records FROM gone GROUP BY class ORDER BY class
