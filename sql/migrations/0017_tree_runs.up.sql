-- Reading hashes of a tree: one plan for all of a session's calls. What is planned anew each time depends on no value: a
-- tree's numbers say nothing of the quarter that an entry lies in. Planning took 0.5 ms of a proof's 2 (10^7 entries).
-- service: credits
-- migrate: compatible

ALTER FUNCTION tree_runs(smallint, int[], bigint[], bigint[]) SET plan_cache_mode = force_generic_plan;
