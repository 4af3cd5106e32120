-- experiment_saved: note that Postgres holds the counters of one experiment up to a seq, and cut its journal.
--
-- KEYS[1] {x:name}:state    hash  as in experiment_merge
-- KEYS[2] {x:name}:journal  list  as in experiment_merge
-- ARGV[1] seq that Postgres holds
-- ARGV[2] how many items of the journal, counted from the first ever, Postgres holds
-- ARGV[3] when the state was laid here that was saved: the items of another one are not counted alike
-- Returns {"OK"} | {"FORGOT"}
-- Cost: O(items that are cut).

local state = redis.call('HMGET', KEYS[1], 'born', 'saved', 'trimmed')
if state[1] ~= ARGV[3] then return {'FORGOT'} end
local cut = tonumber(ARGV[2]) - tonumber(state[3] or 0)
if cut > 0 then
  redis.call('LTRIM', KEYS[2], cut, -1)
  redis.call('HSET', KEYS[1], 'trimmed', ARGV[2])
end
if tonumber(ARGV[1]) > tonumber(state[2] or 0) then redis.call('HSET', KEYS[1], 'saved', ARGV[1]) end
return {'OK'}
