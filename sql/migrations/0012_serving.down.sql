-- Takes the founding away; a new ledger then needs the owner of the schema. The right to read schema_migrations stays.
DROP FUNCTION found_ledger;
