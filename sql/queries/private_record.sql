-- A private record with the wrapped key that opens it. Params: $1 record_id text.
SELECT r.record_id, r.class, r.tenant_id, r.subject, r.dek_id, r.commitment, r.shown::text, r.salt, r.sealed, r.created_at,
       k.kek_id, k.wrapped
FROM private_records r JOIN private_keys k ON k.subject = r.subject AND k.dek_id = r.dek_id
WHERE r.record_id = $1
