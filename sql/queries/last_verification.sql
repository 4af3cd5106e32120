-- What the last verification found. No params. Returns its faults and its end, or none and the founding of the ledger.
SELECT coalesce(v.faults, 0) AS faults, coalesce(v.finished_at, l.created_at) AS ended_at
FROM ledger AS l LEFT JOIN LATERAL (
  SELECT faults, finished_at FROM ledger_verifications WHERE faults IS NOT NULL ORDER BY started_at DESC LIMIT 1
) AS v ON true
