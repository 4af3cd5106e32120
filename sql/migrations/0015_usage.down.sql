-- Days get rows of their own again, made from the hours; the summary counts what tenants moved again.
DROP MATERIALIZED VIEW credit_balances_summary;
DROP VIEW usage_daily;

CREATE TABLE usage_daily (LIKE usage_hourly INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (tenant_id, start, type))
  WITH (fillfactor = 70);
INSERT INTO usage_daily (tenant_id, start, type, amount, count)
SELECT tenant_id, date_trunc('day', start AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', type, sum(amount), sum(count)
FROM usage_hourly GROUP BY 1, 2, 3;
GRANT SELECT, INSERT, UPDATE ON usage_daily TO shieldx_app;

CREATE OR REPLACE FUNCTION roll_usage(of_shard smallint, batch int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  low bigint;
  high bigint;
BEGIN
  INSERT INTO usage_marks (shard, seq) VALUES (of_shard, -1) ON CONFLICT DO NOTHING;
  SELECT seq INTO low FROM usage_marks WHERE shard = of_shard FOR UPDATE;
  SELECT least(head_seq, low + batch) INTO high FROM ledger_shards WHERE shard = of_shard;
  IF high IS NULL OR high <= low THEN
    RETURN 0;
  END IF;
  WITH hours AS (
    SELECT tenant_id, date_trunc('hour', at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, type,
           sum(amount) AS amount, count(*) AS count
    FROM audit_chain
    WHERE shard = of_shard AND seq > low AND seq <= high AND type IN ('topup', 'consume', 'commit', 'refund')
    GROUP BY 1, 2, 3
  ), by_day AS (
    INSERT INTO usage_daily AS d
    SELECT tenant_id, date_trunc('day', start AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', type, sum(amount), sum(count)
    FROM hours GROUP BY 1, 2, 3
    ON CONFLICT (tenant_id, start, type) DO UPDATE SET amount = d.amount + excluded.amount, count = d.count + excluded.count
  )
  INSERT INTO usage_hourly AS h SELECT * FROM hours
  ON CONFLICT (tenant_id, start, type) DO UPDATE SET amount = h.amount + excluded.amount, count = h.count + excluded.count;
  UPDATE usage_marks SET seq = high WHERE shard = of_shard;
  RETURN high - low;
END $$;

CREATE MATERIALIZED VIEW credit_balances_summary AS
SELECT a.tenant_id, a.shard, a.balance, a.reserved, a.balance - a.reserved AS available, a.version, a.created_at, a.updated_at,
       coalesce(u.topped_up, 0) AS topped_up, coalesce(u.consumed, 0) AS consumed, coalesce(u.refunded, 0) AS refunded,
       coalesce(u.transactions, 0) AS transactions
FROM credit_accounts a LEFT JOIN (
  SELECT tenant_id, sum(amount) FILTER (WHERE type = 'topup') AS topped_up,
         sum(amount) FILTER (WHERE type IN ('consume', 'commit')) AS consumed,
         sum(amount) FILTER (WHERE type = 'refund') AS refunded, sum(count) AS transactions
  FROM usage_daily GROUP BY tenant_id
) AS u USING (tenant_id);
CREATE UNIQUE INDEX credit_balances_summary_tenant ON credit_balances_summary (tenant_id);   -- lets readers go on meanwhile

-- Refresh the summary unless that was done less than `every` before `at`, or is being done; returns whether it was.
CREATE OR REPLACE FUNCTION refresh_balances_summary(at timestamptz, every interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext('shieldx balances summary')) THEN
    RETURN false;
  END IF;
  INSERT INTO ledger_jobs AS j (name, ran_at) VALUES ('balances summary', at)
  ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at WHERE j.ran_at <= excluded.ran_at - every;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  REFRESH MATERIALIZED VIEW CONCURRENTLY credit_balances_summary;
  RETURN true;
END $$;

GRANT SELECT ON credit_balances_summary TO shieldx_app;
