-- Append events that fold to more than balances: reservations, settings, refunds. One call in place of a transaction of
-- up to seven statements, so that a batch with holds waits for one round trip like any other.
--
-- The first eighteen parameters are those of ledger_append; `folds` is a JSON object, each member of which may be missing:
--   holds     [{id, tenant, amount, purpose, at_ms, expires_at_ms, description, metadata, transfer}]
--   closings  [{id, status, committed, at_ms, seq}]   only an open reservation can end
--   settings  [{tenant, settings, created_at_ms}]     settings as JSON text, all that is set
--   incoming  [{tenant, change}]                      what prepared transfers will bring
--   refunds   [{id, consumed, refunded}]              what has been given back of a transaction
-- Raises P0004 when a reservation to close is not open: then chain and Postgres disagree, and nobody may go on.
CREATE FUNCTION ledger_append_folded(
  of_shard smallint, writer_epoch bigint, old_head bigint, prev_hash bytea, sealed_by text, note text,
  at_ms_list text, id_list text, tenant_list text, type_list text, amount_list text, balance_list text,
  reserved_list text, version_list text, entry_lengths text, entry_run bytea, hash_run bytea, signature_run bytea,
  folds json
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  part json;
  closed int;
BEGIN
  PERFORM ledger_append(of_shard, writer_epoch, old_head, prev_hash, sealed_by, note, at_ms_list, id_list, tenant_list,
    type_list, amount_list, balance_list, reserved_list, version_list, entry_lengths, entry_run, hash_run, signature_run);
  part := folds -> 'settings';
  IF part IS NOT NULL THEN
    UPDATE credit_accounts a
    SET settings = u.settings::jsonb, created_at = 'epoch'::timestamptz + u.created_at_ms * interval '1 millisecond'
    FROM json_to_recordset(part) AS u (tenant text, settings text, created_at_ms bigint)
    WHERE a.tenant_id = u.tenant;
  END IF;
  part := folds -> 'incoming';
  IF part IS NOT NULL THEN
    UPDATE credit_accounts a SET incoming = a.incoming + u.change
    FROM json_to_recordset(part) AS u (tenant text, change bigint)
    WHERE a.tenant_id = u.tenant;
  END IF;
  part := folds -> 'holds';
  IF part IS NOT NULL THEN
    INSERT INTO credit_reservations
      (reservation_id, shard, tenant_id, amount, status, purpose, created_at, expires_at, description, metadata, transfer_id)
    SELECT u.id, of_shard, u.tenant, u.amount, 'held', u.purpose, 'epoch'::timestamptz + u.at_ms * interval '1 millisecond',
           'epoch'::timestamptz + u.expires_at_ms * interval '1 millisecond', u.description, u.metadata, u.transfer
    FROM json_to_recordset(part) AS u (id uuid, tenant text, amount bigint, purpose text, at_ms bigint,
                                       expires_at_ms bigint, description text, metadata text, transfer uuid);
  END IF;
  part := folds -> 'closings';
  IF part IS NOT NULL THEN
    UPDATE credit_reservations r
    SET status = u.status, committed = u.committed, closed_seq = u.seq,
        closed_at = 'epoch'::timestamptz + u.at_ms * interval '1 millisecond'
    FROM json_to_recordset(part) AS u (id uuid, status text, committed bigint, at_ms bigint, seq bigint)
    WHERE r.reservation_id = u.id AND r.status = 'held';
    GET DIAGNOSTICS closed = ROW_COUNT;
    IF closed <> json_array_length(part) THEN
      RAISE EXCEPTION '% reservations ended in the chain, but % of them were open', json_array_length(part), closed
        USING ERRCODE = 'assert_failure';
    END IF;
  END IF;
  part := folds -> 'refunds';
  IF part IS NOT NULL THEN
    INSERT INTO credit_refunds AS r (transaction_id, consumed, refunded)
    SELECT u.id, u.consumed, u.refunded FROM json_to_recordset(part) AS u (id uuid, consumed bigint, refunded bigint)
    ON CONFLICT (transaction_id) DO UPDATE SET refunded = excluded.refunded;
  END IF;
END $$;

REVOKE ALL ON FUNCTION ledger_append_folded FROM public;
GRANT EXECUTE ON FUNCTION ledger_append_folded TO shieldx_app;
