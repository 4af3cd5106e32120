-- checkpoint_keep: remember what is about to be signed about a shard's tree, if the last such memory is the expected one.
--
-- A signer whose Postgres was restored from a backup finds here a tree that its own does not continue, and signs nothing.
--
-- KEYS[1] {s00}:checkpoint hash   size, root: the largest tree that was or is about to be signed
-- ARGV[1] size that is expected there, "" when nothing is expected
-- ARGV[2] root that is expected there, hex, "" when nothing is expected
-- ARGV[3] size of the new tree, integer
-- ARGV[4] root of the new tree, hex
-- Returns {"OK"} | {"OTHER", size, root}: what is there instead, each "" when nothing is; nothing was changed
-- Cost: O(1).

local known = redis.call('HMGET', KEYS[1], 'size', 'root')
local size, root = known[1] or '', known[2] or ''
if size ~= ARGV[1] or root ~= ARGV[2] then return {'OTHER', size, root} end
redis.call('HSET', KEYS[1], 'size', ARGV[3], 'root', ARGV[4])
return {'OK'}
