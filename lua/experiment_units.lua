-- experiment_units: tell what units of one experiment got when they were enrolled.
--
-- KEYS[1] {x:name}:state  hash  as in experiment_merge
--         {x:name}:units:<bucket>  hash  as in experiment_enrol
-- ARGV[1] JSON: [unit, ...], 64-bit integers as text
-- Returns {"OK", what each unit got or "" ...} | {"FORGOT"}
-- Cost: O(units), 1 command each.

if redis.call('EXISTS', KEYS[1]) == 0 then return {'FORGOT'} end
local prefix = string.sub(KEYS[1], 1, -6)
local found = {'OK'}
for _, unit in ipairs(cjson.decode(ARGV[1])) do
  found[#found + 1] = redis.call('HGET', prefix .. 'units:' .. string.sub(unit, -4), unit) or ''
end
return found
