-- Takes the right to read the archive away from the server's role again; it goes on reading the chain by its view.
REVOKE ALL ON ALL TABLES IN SCHEMA ledger_archive FROM shieldx_app;
CREATE OR REPLACE FUNCTION archive_partition(
  parent text, partition text, bounds text, entries bigint, marks jsonb, at timestamptz
) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', parent, partition);
  EXECUTE format('ALTER TABLE public.%I SET SCHEMA ledger_archive', partition);
  EXECUTE format('REVOKE ALL ON ledger_archive.%I FROM shieldx_app', partition);
  INSERT INTO archived_partitions (name, parent, bounds, entries, ends, archived_at)
  VALUES (partition, parent, bounds, entries, marks, at);
END $$;
