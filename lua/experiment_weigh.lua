-- experiment_weigh: make the next version of the weights of one experiment; the first who asks for a version makes it.
--
-- KEYS[1] {x:name}:state    hash  as in experiment_merge
-- KEYS[2] {x:name}:weights  hash  version to JSON of the probability of each variant
-- ARGV[1] version to make, integer > 0
-- ARGV[2] its weights, JSON
-- Returns {"OK", weights of this version, whoever made them} | {"FORGOT"}
-- Cost: O(1).

local version = redis.call('HMGET', KEYS[1], 'seq', 'version')
if not version[1] then return {'FORGOT'} end
if tonumber(ARGV[1]) == tonumber(version[2] or 0) + 1 then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('HSET', KEYS[1], 'version', ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'seq', 1)
end
return {'OK', redis.call('HGET', KEYS[2], ARGV[1]) or ''}
