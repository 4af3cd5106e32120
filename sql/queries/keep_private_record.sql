-- Keep a private record, unless a first attempt of the same operation has kept it. Params: $1 record_id, $2 class,
-- $3 tenant_id, $4 subject text, $5 dek_id, $6 commitment bytea, $7 shown jsonb, $8 salt, $9 sealed bytea,
-- $10 created_at timestamptz, $11 fingerprint of the request text or null. Returns: a row if it was kept now.
INSERT INTO private_records
  (record_id, class, tenant_id, subject, dek_id, commitment, shown, salt, sealed, created_at, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11)
ON CONFLICT (record_id) DO NOTHING RETURNING record_id
