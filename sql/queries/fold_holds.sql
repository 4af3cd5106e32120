-- New reservations. Params, one element a reservation: $1 ids uuid[], $2 shard smallint, $3 tenants text[],
-- $4 amounts bigint[], $5 purposes text[], $6 created timestamptz[], $7 expires timestamptz[], $8 descriptions text[],
-- $9 metadata text[], $10 transfers uuid[], $11 counts of quotas bigint[].
INSERT INTO credit_reservations
  (reservation_id, shard, tenant_id, amount, status, purpose, created_at, expires_at, description, metadata, transfer_id,
   counted)
SELECT u.id, $2, u.tenant_id, u.amount, 'held', u.purpose, u.created_at, u.expires_at, u.description, u.metadata,
       u.transfer_id, u.counted
FROM unnest($1::uuid[], $3::text[], $4::bigint[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::text[],
            $9::text[], $10::uuid[], $11::bigint[])
  AS u (id, tenant_id, amount, purpose, created_at, expires_at, description, metadata, transfer_id, counted)
