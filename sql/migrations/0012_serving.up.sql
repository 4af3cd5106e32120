-- What the server's role needs to serve without being the owner of the schema: to see which migrations are applied, and to
-- found the ledger of a new database, once.
-- service: credits
-- migrate: compatible

-- Write the rows of a new ledger, one shard for each first prev_hash in `heads`, and return true; false, and nothing is
-- written, when there is a ledger. Runs as its owner: the server's role may insert neither of them by itself.
CREATE FUNCTION found_ledger(of_ledger uuid, of_origin text, salt bytea, heads bytea[]) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO ledger (ledger_id, origin, shard_count, idempotency_salt)
  VALUES (of_ledger, of_origin, cardinality(heads), salt) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO ledger_shards (shard, head_hash)
  SELECT head.number - 1, head.hash FROM unnest(heads) WITH ORDINALITY AS head (hash, number);
  RETURN true;
END $$;

REVOKE ALL ON FUNCTION found_ledger FROM public;
GRANT EXECUTE ON FUNCTION found_ledger TO shieldx_app;
GRANT SELECT ON schema_migrations TO shieldx_app;
