-- The life of rows: usage rollups, a summary of balances, checked partitions, and an archive that the chain still spans.
--
-- ledger_archive        schema of quarterly tables that are no partitions any more; nobody but the owner writes there
-- archived_partitions   what was archived: bounds, and where each shard's part of it ends
-- audit_chain           view: every entry, archived or not; reads that must see all of the chain use it
-- usage_hourly, _daily  sums by tenant and type, kept up from a watermark of seq per shard
CREATE SCHEMA ledger_archive;
GRANT USAGE ON SCHEMA ledger_archive TO shieldx_app;

CREATE TABLE archived_partitions (
  name        text PRIMARY KEY,                -- table in ledger_archive
  parent      text NOT NULL CHECK (parent IN ('audit_entries', 'credit_reservations')),
  bounds      text NOT NULL,                   -- as PostgreSQL writes them, to attach it again
  entries     bigint NOT NULL CHECK (entries >= 0),
  ends        jsonb NOT NULL DEFAULT '{}',     -- shard -> {seq, hash} of the last entry in it
  archived_at timestamptz NOT NULL
);

CREATE TABLE usage_marks (
  shard smallint PRIMARY KEY,
  seq   bigint NOT NULL CHECK (seq >= -1)      -- the last entry that the rollups hold
);
CREATE TABLE usage_hourly (
  tenant_id text NOT NULL,
  start     timestamptz NOT NULL,
  type      text NOT NULL,
  amount    numeric NOT NULL,
  count     bigint NOT NULL,
  PRIMARY KEY (tenant_id, start, type)
) WITH (fillfactor = 70);
CREATE TABLE usage_daily (LIKE usage_hourly INCLUDING ALL) WITH (fillfactor = 70);
-- Hours are written in their order, so a few pages of BRIN find what is to be forgotten.
CREATE INDEX usage_hourly_start ON usage_hourly USING brin (start) WITH (pages_per_range = 32);

CREATE TABLE ledger_jobs (
  name   text PRIMARY KEY,
  ran_at timestamptz NOT NULL
);

-- Make the view anew over the partitioned table and every archived one, with the columns of the table.
CREATE FUNCTION make_audit_chain() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  names text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = 'public.audit_entries'::regclass AND attnum > 0 AND NOT attisdropped);
  branches text := (SELECT coalesce(string_agg(format(' UNION ALL SELECT %s FROM ledger_archive.%I', names, name), '' ORDER BY name), '')
                    FROM archived_partitions WHERE parent = 'audit_entries');
BEGIN
  EXECUTE 'CREATE OR REPLACE VIEW public.audit_chain AS SELECT ' || names || ' FROM public.audit_entries' || branches;
END $$;
SELECT make_audit_chain();

-- The partitions of a table, oldest first, with the end of their range.
CREATE FUNCTION partitions_of(parent regclass)
RETURNS TABLE (name text, bounds text, ends_at timestamptz) LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
  SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid),
         (to_date(substring(c.relname FROM '(\d{4})q\d$'), 'YYYY')
           + substring(c.relname FROM 'q(\d)$')::int * interval '3 months')::timestamp AT TIME ZONE 'UTC'
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = parent AND c.relname ~ '_\d{4}q[1-4]$' ORDER BY c.relname
$$;

-- Move one partition to the archive. `marks` says where each shard ends in it.
CREATE FUNCTION archive_partition(parent text, partition text, bounds text, entries bigint, marks jsonb, at timestamptz)
RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', parent, partition);
  EXECUTE format('ALTER TABLE public.%I SET SCHEMA ledger_archive', partition);
  EXECUTE format('REVOKE ALL ON ledger_archive.%I FROM shieldx_app', partition);
  INSERT INTO archived_partitions (name, parent, bounds, entries, ends, archived_at)
  VALUES (partition, parent, bounds, entries, marks, at);
END $$;

-- Archive and detach every quarter that ended more than `days` before `at`, oldest first; returns how many entries it were.
--
-- A quarter stays, and all after it, while it holds the last entry of any shard: the tables of the server always hold
-- every head. Quarters of reservations stay while one of them is held. Waits at most 2 s for the lock; then nothing
-- has changed and the next run tries again. Runs as its owner: the server's role may not detach tables by itself.
CREATE FUNCTION cleanup_old_transactions(days int, at timestamptz DEFAULT now()) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  part record;
  marks jsonb;
  entries bigint;
  busy boolean;
  archived bigint := 0;
BEGIN
  -- Answers are remembered for a day; two leave room for clocks that differ.
  IF days IS NULL OR days < 2 OR days > 36600 THEN
    RAISE EXCEPTION 'cleanup_old_transactions: expected 2 to 36600 days, not %', days;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('shieldx partitions'));
  FOR part IN SELECT * FROM partitions_of('audit_entries') p WHERE p.ends_at <= at - days * interval '1 day' LOOP
    EXECUTE format(
      'SELECT EXISTS (SELECT FROM ledger_shards s JOIN public.%I e ON e.shard = s.shard AND e.seq = s.head_seq)', part.name
    ) INTO busy;
    EXIT WHEN busy;
    EXECUTE format(
      'SELECT coalesce(jsonb_object_agg(shard, jsonb_build_object(''seq'', seq, ''hash'', encode(hash, ''hex''))), ''{}''),
              coalesce(sum(number), 0)
       FROM (SELECT DISTINCT ON (shard) shard, seq, hash, count(*) OVER (PARTITION BY shard) AS number
             FROM public.%I ORDER BY shard, seq DESC) AS last', part.name
    ) INTO marks, entries;
    -- Proofs read leaf hashes of archived entries from the tree: see 0003_merkle.
    EXECUTE format('INSERT INTO audit_tree (shard, level, number, hash) SELECT shard, 0, seq, hash FROM public.%I', part.name);
    PERFORM archive_partition('audit_entries', part.name, part.bounds, entries, marks, at);
    archived := archived + entries;
  END LOOP;
  FOR part IN SELECT * FROM partitions_of('credit_reservations') p WHERE p.ends_at <= at - days * interval '1 day' LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE status = ''held''), count(*) FROM public.%I', part.name, part.name)
    INTO busy, entries;
    EXIT WHEN busy;
    PERFORM archive_partition('credit_reservations', part.name, part.bounds, entries, '{}', at);
  END LOOP;
  PERFORM make_audit_chain();
  RETURN archived;
END $$;

-- What is wrong with the partitions from the oldest to `ahead` quarters after that of `at`; nothing when all are there.
CREATE FUNCTION partition_faults(at timestamptz, ahead int) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  WITH parents (parent) AS (VALUES ('audit_entries'), ('credit_reservations')),
  wanted AS (
    SELECT parent, format('%s_%s', parent, to_char(day, 'YYYY"q"Q')) AS name
    FROM parents, LATERAL generate_series(
      coalesce((SELECT min(ends_at) AT TIME ZONE 'UTC' - interval '3 months' FROM partitions_of(parent::regclass)),
               date_trunc('quarter', at AT TIME ZONE 'UTC')),
      date_trunc('quarter', at AT TIME ZONE 'UTC') + ahead * interval '3 months', interval '3 months') AS day
  )
  SELECT format('%s has no partition %s', parent, name) FROM wanted
  WHERE name NOT IN (SELECT p.name FROM partitions_of(parent::regclass) p)
  UNION ALL
  SELECT format('%s is no partition of a quarter of %s', c.relname, parent) FROM parents
  JOIN pg_inherits i ON i.inhparent = parent::regclass JOIN pg_class c ON c.oid = i.inhrelid
  WHERE c.relname !~ '_\d{4}q[1-4]$'
$$;

-- Add the next entries of a shard to the rollups, at most `batch`; returns how many. Each entry counts exactly once:
-- the watermark moves in the same transaction, and its row lock makes others wait.
CREATE FUNCTION roll_usage(of_shard smallint, batch int) RETURNS bigint LANGUAGE plpgsql AS $$
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

-- One row a tenant: what it has, and what it has ever moved as far as the rollups know. Refreshed every five minutes.
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
CREATE FUNCTION refresh_balances_summary(at timestamptz, every interval) RETURNS boolean
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

REVOKE ALL ON FUNCTION make_audit_chain(), archive_partition(text, text, text, bigint, jsonb, timestamptz),
  cleanup_old_transactions(int, timestamptz), partition_faults(timestamptz, int), roll_usage(smallint, int),
  refresh_balances_summary(timestamptz, interval) FROM public;
GRANT EXECUTE ON FUNCTION cleanup_old_transactions(int, timestamptz), partition_faults(timestamptz, int),
  roll_usage(smallint, int), refresh_balances_summary(timestamptz, interval) TO shieldx_app;
GRANT SELECT ON archived_partitions, audit_chain, credit_balances_summary, ledger_jobs TO shieldx_app;
GRANT SELECT, INSERT, UPDATE ON usage_marks, usage_daily TO shieldx_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_hourly TO shieldx_app;
