-- Usage is rolled up by the hour alone, and the summary of balances reads accounts alone.
-- service: credits
-- migrate: compatible
--
-- Each entry cost two rows of rollups, one by the hour and one by the day, and each refresh of the summary summed up
-- every day that there ever was. At a million tenants that took more of Postgres than the chain did.

-- Made again below, in the same transaction; no server reads it.
-- squawk-ignore ban-drop-view
DROP MATERIALIZED VIEW credit_balances_summary;
-- Its rows are the sums of usage_hourly, which is never cut, so nothing is lost.
-- squawk-ignore ban-drop-table
DROP TABLE usage_daily;

-- By the day, for people and for servers of the release before.
CREATE VIEW usage_daily AS
SELECT tenant_id, date_trunc('day', start AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, type,
       sum(amount) AS amount, sum(count)::bigint AS count
FROM usage_hourly GROUP BY 1, 2, 3;

-- Add the next entries of a shard to the rollups, at most `batch`; returns how many. Each entry counts exactly once:
-- the watermark moves in the same transaction, and its row lock makes others wait.
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
  INSERT INTO usage_hourly AS h (tenant_id, start, type, amount, count)
  SELECT tenant_id, date_trunc('hour', at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', type, sum(amount), count(*)
  FROM audit_chain
  WHERE shard = of_shard AND seq > low AND seq <= high AND type IN ('topup', 'consume', 'commit', 'refund')
  GROUP BY 1, 2, 3
  ON CONFLICT (tenant_id, start, type) DO UPDATE SET amount = h.amount + excluded.amount, count = h.count + excluded.count;
  UPDATE usage_marks SET seq = high WHERE shard = of_shard;
  RETURN high - low;
END $$;

-- One row a tenant: what it has. Refreshed every five minutes.
CREATE MATERIALIZED VIEW credit_balances_summary AS
SELECT tenant_id, shard, balance, reserved, balance - reserved AS available, version, created_at, updated_at
FROM credit_accounts;
-- The view is as new as its index: nobody waits.
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX credit_balances_summary_tenant ON credit_balances_summary (tenant_id);

-- Refresh the summary unless that was done less than `every` before `at`, or is being done; returns whether it was.
--
-- Readers wait meanwhile, 2 s at a million accounts. CONCURRENTLY, for which they need not, took 23 s there and kept old
-- versions of all rows alive for as long, which slows the ledger down. Waits at most 1 s for readers; then 55P03 is raised.
CREATE OR REPLACE FUNCTION refresh_balances_summary(at timestamptz, every interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext('shieldx balances summary')) THEN
    RETURN false;
  END IF;
  INSERT INTO ledger_jobs AS j (name, ran_at) VALUES ('balances summary', at)
  ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at WHERE j.ran_at <= excluded.ran_at - every;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  REFRESH MATERIALIZED VIEW credit_balances_summary;
  RETURN true;
END $$;

REVOKE INSERT, UPDATE, DELETE ON usage_daily FROM shieldx_app;
GRANT SELECT ON usage_daily, credit_balances_summary TO shieldx_app;
