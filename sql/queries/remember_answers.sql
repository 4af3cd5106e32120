-- Refusals that a retry is to meet again. Params: $1 shard smallint, $2 idempotency bytea[], $3 fingerprints bytea[],
-- $4 answers text[]. The first one stays.
INSERT INTO credit_answers (idempotency, shard, fingerprint, answer, at)
SELECT u.idempotency, $1, u.fingerprint, u.answer, now()
FROM unnest($2::bytea[], $3::bytea[], $4::text[]) AS u (idempotency, fingerprint, answer)
ON CONFLICT (idempotency) DO UPDATE SET fingerprint = excluded.fingerprint, answer = excluded.answer, at = excluded.at
WHERE credit_answers.at < now() - interval '24 hours'
