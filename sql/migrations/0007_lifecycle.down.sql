-- Puts archived quarters back where they were, and takes rollups, summary and archive away.
DROP VIEW audit_chain;
DO $$
DECLARE
  part record;
BEGIN
  FOR part IN SELECT * FROM archived_partitions ORDER BY name LOOP
    EXECUTE format('ALTER TABLE ledger_archive.%I SET SCHEMA public', part.name);
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I %s', part.parent, part.name, part.bounds);
  END LOOP;
END $$;
DELETE FROM audit_tree WHERE level = 0;
DROP FUNCTION refresh_balances_summary(timestamptz, interval), roll_usage(smallint, int), partition_faults(timestamptz, int),
  cleanup_old_transactions(int, timestamptz), archive_partition(text, text, text, bigint, jsonb, timestamptz),
  partitions_of(regclass), make_audit_chain();
DROP MATERIALIZED VIEW credit_balances_summary;
DROP TABLE ledger_jobs, usage_daily, usage_hourly, usage_marks, archived_partitions;
DROP SCHEMA ledger_archive;
