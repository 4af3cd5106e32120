-- What has been given back of a transaction. Params: $1 ids uuid[], $2 consumed bigint[], $3 refunded bigint[].
INSERT INTO credit_refunds AS r (transaction_id, consumed, refunded)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[])
ON CONFLICT (transaction_id) DO UPDATE SET refunded = excluded.refunded
