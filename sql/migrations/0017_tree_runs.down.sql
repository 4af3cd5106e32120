-- Back to plans that are made for each call.

ALTER FUNCTION tree_runs(smallint, int[], bigint[], bigint[]) RESET plan_cache_mode;
