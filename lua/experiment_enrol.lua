-- experiment_enrol: enrol units of one experiment, each once; what the first call gave a unit it has for good.
--
-- KEYS[1] {x:name}:state    hash  as in experiment_merge
-- KEYS[2] {x:name}:totals   hash  as in experiment_merge
-- KEYS[3] {x:name}:journal  list  as in experiment_merge
--         {x:name}:units:<bucket>  hash  unit, a 64-bit integer, to what it got; bucket: the last four digits of the unit
-- ARGV[1] seq that Postgres holds, integer >= 0
-- ARGV[2] when the caller knows the state to have been laid here: the versions that it names are those of this state
-- ARGV[3] ... unit, a 64-bit integer; what it shall get; the number of the variant in that; and so on for each unit
-- Returns {"OK", version of the weights, what each unit has ...}
--   or, before anything was done: {"FORGOT"} | {"BEHIND", seq}
-- Cost: O(units), 1 command each, 2 where it was enrolled before, and 5 for the call.

local call = redis.call
local head = call('HMGET', KEYS[1], 'seq', 'born', 'version')
if not head[1] or head[2] ~= ARGV[2] then return {'FORGOT'} end
if tonumber(head[1]) < tonumber(ARGV[1]) then return {'BEHIND', head[1]} end
local prefix = string.sub(KEYS[1], 1, -6)
local found, new, counts = {'OK', tonumber(head[3] or 0)}, {}, {}
for i = 3, #ARGV, 3 do
  local unit, wanted, variant = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key = prefix .. 'units:' .. string.sub(unit, -4)
  if call('HSETNX', key, unit, wanted) == 1 then
    new[#new + 1] = unit .. '=' .. wanted
    counts[variant] = (counts[variant] or 0) + 1
    found[#found + 1] = wanted
  else
    found[#found + 1] = call('HGET', key, unit)
  end
end
if #new > 0 then
  for variant, count in pairs(counts) do call('HINCRBY', KEYS[2], 'a' .. variant, count) end
  call('RPUSH', KEYS[3], 'u' .. table.concat(new, ' '))
  call('HINCRBY', KEYS[1], 'journaled', 1)
  call('HINCRBY', KEYS[1], 'seq', 1)
end
return found
