-- The server's role may read the archived quarters of reservations, which its verification holds against the chain.
-- service: credits
-- migrate: compatible

-- Move one partition to the archive. `marks` says where each shard ends in it.
CREATE OR REPLACE FUNCTION archive_partition(
  parent text, partition text, bounds text, entries bigint, marks jsonb, at timestamptz
) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', parent, partition);
  EXECUTE format('ALTER TABLE public.%I SET SCHEMA ledger_archive', partition);
  EXECUTE format('REVOKE ALL ON ledger_archive.%I FROM shieldx_app', partition);
  EXECUTE format('GRANT SELECT ON ledger_archive.%I TO shieldx_app', partition);
  INSERT INTO archived_partitions (name, parent, bounds, entries, ends, archived_at)
  VALUES (partition, parent, bounds, entries, marks, at);
END $$;

GRANT SELECT ON ALL TABLES IN SCHEMA ledger_archive TO shieldx_app;
