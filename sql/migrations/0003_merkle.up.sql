-- The Merkle tree of each shard's chain (RFC 6962), and what was signed about it.
--
-- The leaf hashes, tile level 0 of C2SP tlog-tiles, are audit_entries.hash. audit_tree holds the tile levels above: hash
-- `number` of level l covers the entries number * 256^l to before (number + 1) * 256^l, and is stored once, when the last
-- of them is under a checkpoint. So a tile, whole or partial, is a range of at most 256 rows, and no row ever changes.
-- Level 0 stands in audit_tree only for entries that were archived: whoever takes a partition of audit_entries away puts
-- its hashes there in the same transaction, and all proofs go on.

CREATE TABLE audit_tree (
  shard  smallint NOT NULL,
  level  smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
  number bigint NOT NULL CHECK (number >= 0),
  hash   bytea NOT NULL CHECK (length(hash) = 32),
  PRIMARY KEY (shard, level, number) INCLUDE (hash)
);

CREATE TABLE audit_checkpoints (
  shard     smallint NOT NULL,
  size      bigint NOT NULL CHECK (size >= 0),
  root      bytea NOT NULL CHECK (length(root) = 32),
  note      text NOT NULL,                      -- the C2SP signed note, as it is served
  signers   text NOT NULL,                      -- ids of the keys that signed: another set of keys may sign a size again
  epoch     bigint NOT NULL,                    -- of the writer in whose time it was signed
  signed_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (shard, size, signers)
);

CREATE TABLE audit_cosignatures (
  shard     smallint NOT NULL,
  size      bigint NOT NULL CHECK (size >= 0),
  witness   text NOT NULL,                      -- key name
  key_id    bytea NOT NULL CHECK (length(key_id) = 4),
  line      text NOT NULL,                      -- the signature line, to be put under the note
  cosigned_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (shard, size, witness, key_id)
);

-- Keep a signed checkpoint and the hashes that it made complete. Raises 40001 when it does not follow the last one, or
-- when another writer has taken the shard: signers of one shard take turns by a lock of their own, so that they never
-- wait for the writer, nor it for them. The hashes of the tree are given as one run of 32 bytes each.
CREATE FUNCTION checkpoint_append(
  of_shard smallint, writer_epoch bigint, old_size bigint, old_root bytea, new_size bigint, new_root bytea,
  signed_note text, signed_by text, level_list text, number_list text, hash_run bytea
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  last record;
BEGIN
  PERFORM pg_advisory_xact_lock(x'53484350'::int, of_shard);  -- "SHCP"
  SELECT size, root INTO last FROM audit_checkpoints WHERE shard = of_shard ORDER BY size DESC LIMIT 1;
  IF coalesce(last.size, -1) <> old_size OR last.root <> old_root OR new_size < old_size
     OR (new_size = old_size AND new_root <> old_root) THEN
    RAISE EXCEPTION 'the last checkpoint of shard % has size %, not %', of_shard, last.size, old_size
      USING ERRCODE = 'serialization_failure';
  END IF;
  IF NOT EXISTS (SELECT FROM ledger_shards WHERE shard = of_shard AND epoch = writer_epoch AND head_seq >= new_size - 1) THEN
    RAISE EXCEPTION 'shard % is not at epoch %, or has no % entries', of_shard, writer_epoch, new_size
      USING ERRCODE = 'serialization_failure';
  END IF;
  INSERT INTO audit_tree (shard, level, number, hash)
  SELECT of_shard, u.level, u.number, substr(hash_run, (u.i::int - 1) * 32 + 1, 32)
  FROM unnest(level_list::smallint[], number_list::bigint[]) WITH ORDINALITY AS u (level, number, i);
  INSERT INTO audit_checkpoints (shard, size, root, note, signers, epoch)
  VALUES (of_shard, new_size, new_root, signed_note, signed_by, writer_epoch);
END $$;

-- Hashes of a tree as runs of 32 bytes each: of tile level levels[i], those numbered lows[i] to before highs[i]. A run is
-- short when hashes are missing. Always by index: the ranges are a few hundred rows of what may be billions.
CREATE FUNCTION tree_runs(of_shard smallint, levels int[], lows bigint[], highs bigint[])
RETURNS SETOF bytea LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  run bytea;
BEGIN
  FOR i IN 1 .. coalesce(array_length(levels, 1), 0) LOOP
    IF levels[i] = 0 THEN
      SELECT string_agg(h.hash, ''::bytea) INTO run FROM (
        SELECT hash FROM audit_entries WHERE shard = of_shard AND seq >= lows[i] AND seq < highs[i] ORDER BY seq) AS h;
      IF coalesce(octet_length(run), 0) < 32 * (highs[i] - lows[i]) THEN
        SELECT string_agg(h.hash, ''::bytea) INTO run FROM (
          SELECT seq, hash FROM audit_entries WHERE shard = of_shard AND seq >= lows[i] AND seq < highs[i]
          UNION ALL
          SELECT number, hash FROM audit_tree
          WHERE shard = of_shard AND level = 0 AND number >= lows[i] AND number < highs[i]
          ORDER BY 1) AS h;
      END IF;
    ELSE
      SELECT string_agg(h.hash, ''::bytea) INTO run FROM (
        SELECT hash FROM audit_tree
        WHERE shard = of_shard AND level = levels[i] AND number >= lows[i] AND number < highs[i] ORDER BY number) AS h;
    END IF;
    RETURN NEXT coalesce(run, ''::bytea);
  END LOOP;
END $$;

REVOKE ALL ON FUNCTION checkpoint_append, tree_runs FROM public;
GRANT EXECUTE ON FUNCTION checkpoint_append, tree_runs TO shieldx_app;
GRANT SELECT, INSERT ON audit_tree, audit_checkpoints, audit_cosignatures TO shieldx_app;
