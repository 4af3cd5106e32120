-- Append events to a chain: the fence, the rows and the accounts they changed, in one call and so in one round trip.
--
-- Element i of every array is the event with seq old_head + i. Raises 40001 when the chain is not at
-- (writer_epoch, old_head) any more: a writer that woke up late, or a commit whose answer was lost.
-- Measured against COPY and separate statements: see "Decisions" in ARCHITECTURE.md.
CREATE FUNCTION ledger_append(
  of_shard smallint, writer_epoch bigint, old_head bigint, prev_hash bytea, sealed_by text, note text,
  at_ms bigint[], ids uuid[], tenants text[], types text[], amounts bigint[], balances bigint[], reserves bigint[],
  versions bigint[], entries bytea[], hashes bytea[], prev_hashes bytea[], signatures bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  events int := array_length(entries, 1);
  last_at timestamptz := 'epoch'::timestamptz + at_ms[events] * interval '1 millisecond';
BEGIN
  UPDATE ledger_shards SET head_seq = old_head + events, head_hash = hashes[events], beat_at = now()
  WHERE shard = of_shard AND epoch = writer_epoch AND head_seq = old_head AND head_hash = prev_hash;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'shard % is not at epoch %, seq % any more', of_shard, writer_epoch, old_head
      USING ERRCODE = 'serialization_failure';
  END IF;
  INSERT INTO audit_entries (shard, seq, at, transaction_id, tenant_id, type, amount, balance, reserved, version,
                             entry, hash, prev_hash, signature, key_id)
  SELECT of_shard, old_head + u.i, 'epoch'::timestamptz + u.at_ms * interval '1 millisecond', u.id, u.tenant, u.type,
         u.amount, u.balance, u.reserved, u.version, u.entry, u.hash, u.prev, u.signature, sealed_by
  FROM unnest(at_ms, ids, tenants, types, amounts, balances, reserves, versions, entries, hashes, prev_hashes, signatures)
    WITH ORDINALITY AS u (at_ms, id, tenant, type, amount, balance, reserved, version, entry, hash, prev, signature, i);
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
