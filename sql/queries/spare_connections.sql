-- How many more sessions Postgres would accept from a role that is no superuser. No params. Returns: one int, below 0 when full.
-- Sessions of databases are counted, which every role may see; autovacuum workers among them make it a little less.
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true), '0')::int
       - (SELECT count(*)::int FROM pg_stat_activity WHERE datid IS NOT NULL)
