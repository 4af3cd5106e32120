-- New alerts. Params, one element an alert: $1 ids text[], $2 shards smallint[], $3 seqs bigint[], $4 tenants text[],
-- $5 types text[], $6 times timestamptz[], $7 data text[] (JSON objects).
INSERT INTO credit_alerts (alert_id, shard, seq, tenant_id, type, at, data)
SELECT id, shard, seq, tenant_id, type, at, data::jsonb
FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
  AS u (id, shard, seq, tenant_id, type, at, data)
