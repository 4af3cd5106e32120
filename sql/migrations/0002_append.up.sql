-- Append events to a chain: the fence, the rows and the accounts they changed, in one call and so in one round trip.
--
-- Event i (from 1) has seq old_head + i. Columns come as text array literals and bytes as one run, because a client
-- encodes those several times faster than arrays (see "Decisions" in ARCHITECTURE.md): entry_lengths cuts entry_run;
-- hashes and signatures are 32 bytes each. Raises 40001 when the chain is not at (writer_epoch, old_head, prev_hash)
-- any more: a writer that woke up late, or a commit whose answer was lost.
CREATE FUNCTION ledger_append(
  of_shard smallint, writer_epoch bigint, old_head bigint, prev_hash bytea, sealed_by text, note text,
  at_ms_list text, id_list text, tenant_list text, type_list text, amount_list text, balance_list text,
  reserved_list text, version_list text, entry_lengths text, entry_run bytea, hash_run bytea, signature_run bytea
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  events int := octet_length(hash_run) / 32;
  at_ms bigint[] := at_ms_list::bigint[];
  last_at timestamptz := 'epoch'::timestamptz + at_ms[events] * interval '1 millisecond';
  tenants text[] := tenant_list::text[];
  balances bigint[] := balance_list::bigint[];
  reserves bigint[] := reserved_list::bigint[];
  versions bigint[] := version_list::bigint[];
BEGIN
  UPDATE ledger_shards SET head_seq = old_head + events, head_hash = substr(hash_run, (events - 1) * 32 + 1, 32), beat_at = now()
  WHERE shard = of_shard AND epoch = writer_epoch AND head_seq = old_head AND head_hash = prev_hash;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'shard % is not at epoch %, seq % any more', of_shard, writer_epoch, old_head
      USING ERRCODE = 'serialization_failure';
  END IF;
  INSERT INTO audit_entries (shard, seq, at, transaction_id, tenant_id, type, amount, balance, reserved, version,
                             entry, hash, prev_hash, signature, key_id)
  SELECT of_shard, old_head + u.i, 'epoch'::timestamptz + u.at_ms * interval '1 millisecond', u.id, u.tenant, u.type,
         u.amount, u.balance, u.reserved, u.version,
         substr(entry_run, u.ends - u.length + 1, u.length),
         substr(hash_run, (u.i::int - 1) * 32 + 1, 32),
         CASE WHEN u.i = 1 THEN prev_hash ELSE substr(hash_run, (u.i::int - 2) * 32 + 1, 32) END,
         substr(signature_run, (u.i::int - 1) * 32 + 1, 32), sealed_by
  FROM (
    SELECT *, sum(length) OVER (ORDER BY i ROWS UNBOUNDED PRECEDING)::int AS ends
    FROM unnest(at_ms, id_list::uuid[], tenants, type_list::text[], amount_list::bigint[], balances, reserves, versions,
                entry_lengths::int[])
      WITH ORDINALITY AS r (at_ms, id, tenant, type, amount, balance, reserved, version, length, i)
  ) AS u;
  -- The last event of each tenant speaks; rows are locked in one order everywhere.
  INSERT INTO credit_accounts AS a (tenant_id, shard, balance, reserved, version, created_at, updated_at)
  SELECT DISTINCT ON (u.tenant) u.tenant, of_shard, u.balance, u.reserved, u.version, last_at, last_at
  FROM unnest(tenants, balances, reserves, versions) WITH ORDINALITY AS u (tenant, balance, reserved, version, i)
  WHERE u.tenant <> ''
  ORDER BY u.tenant, u.i DESC
  ON CONFLICT (tenant_id) DO UPDATE
  SET balance = excluded.balance, reserved = excluded.reserved, version = excluded.version, updated_at = excluded.updated_at;
  PERFORM pg_notify('shieldx_s' || lpad(of_shard::text, 2, '0'), note);
END $$;

REVOKE ALL ON FUNCTION ledger_append FROM public;
GRANT EXECUTE ON FUNCTION ledger_append TO shieldx_app;
