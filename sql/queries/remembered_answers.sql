-- Refusals and batch keys of the last day. Params: $1 shard smallint. Returns hash and fingerprint (base64url), answer, time.
SELECT rtrim(translate(encode(idempotency, 'base64'), '+/', '-_'), '='),
       rtrim(translate(encode(fingerprint, 'base64'), '+/', '-_'), '='), answer, at
FROM credit_answers WHERE shard = $1 AND at > now() - interval '24 hours'
