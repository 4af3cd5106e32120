-- experiment_restore: lay what Postgres holds of one experiment over a Redis that forgot it, a part at a time.
--
-- Several replicas may do it at once: every part is a set that grows, and the last one opens only what is not open.
--
-- KEYS[1] {x:name}:state    hash  as in experiment_merge; while it is missing nothing is merged
-- KEYS[2] {x:name}:totals   hash  as in experiment_merge
-- KEYS[3] {x:name}:latency  hash  as in experiment_merge
-- KEYS[4] {x:name}:journal  list  as in experiment_merge
-- KEYS[5] {x:name}:weights  hash  as in experiment_weigh
--         {x:name}:seen:<window>:<bucket>, {x:name}:dated:<window>, {x:name}:odd, {x:name}:told:<kind>:<bucket>  as in
--         experiment_merge; {x:name}:units:<bucket>  as in experiment_enrol
--         {x:name}:laying  string  token of the laying that is under way: it is gone, with what was laid, once Redis is emptied
-- ARGV[1] seq that Postgres holds
-- ARGV[2] begin, or what to lay: event | unit | quarantine | exposed | success | error | over | open
-- ARGV[3] JSON: [event, ...]; [unit, what it got, ...]; [unit, ...];
--         {totals [field, amount, ...], latency [field, amount, ...], weights [version, JSON, ...], version}
-- ARGV[4] token; to begin, the one to take when no laying is under way
-- Returns {"OK", 1, token} | {"OK", 0}: it is open with this seq or a later one, and was left alone
--   | {"FORGOT"}: another laying is under way, and what this one has laid may be gone
-- Cost: O(arguments).

local call = redis.call
local WINDOW_S = 86400
local KEEP_S = 176400
local prefix = string.sub(KEYS[1], 1, -6)
local seq = call('HGET', KEYS[1], 'seq')
if seq and tonumber(seq) >= tonumber(ARGV[1]) then return {'OK', 0} end
local laying = prefix .. 'laying'
if ARGV[2] == 'begin' then call('SET', laying, ARGV[4], 'NX') end
local token = call('GET', laying)
if ARGV[2] ~= 'begin' and token ~= ARGV[4] then return {'FORGOT'} end
if seq then call('DEL', KEYS[1]) end
local data = cjson.decode(ARGV[3])
local clock = call('TIME')
local window = math.floor(tonumber(clock[1]) / WINDOW_S)
local steps = {begin = function() end}

function steps.event()
  local dated = prefix .. 'dated:' .. window
  for _, event in ipairs(data) do
    local digits = string.sub(event, -4)
    local key = prefix .. 'seen:' .. window .. ':' .. digits
    call('SADD', key, event)
    if call('SETBIT', dated, math.abs(tonumber(digits)), 1) == 0 then call('EXPIRE', key, KEEP_S) end
  end
  call('EXPIRE', dated, KEEP_S)
end

function steps.unit()
  for i = 1, #data, 2 do call('HSET', prefix .. 'units:' .. string.sub(data[i], -4), data[i], data[i + 1]) end
end

function steps.quarantine()
  for _, unit in ipairs(data) do call('SADD', prefix .. 'odd', unit) end
end

local function tell(kind)
  for _, unit in ipairs(data) do
    call('SADD', prefix .. 'told:' .. kind .. ':' .. string.sub(unit, -4), unit)
  end
end
function steps.exposed() tell('X') end
function steps.success() tell('S') end
function steps.error() tell('E') end
function steps.over() tell('O') end

local function lay(key, pairs_of)
  call('DEL', key)
  for i = 1, #pairs_of, 2 do call('HSET', key, pairs_of[i], pairs_of[i + 1]) end
end

function steps.open()
  lay(KEYS[2], data.totals)
  lay(KEYS[3], data.latency)
  lay(KEYS[5], data.weights)
  call('DEL', KEYS[4], laying)
  call('HSET', KEYS[1], 'seq', ARGV[1], 'saved', ARGV[1], 'window', window, 'events', 0, 'version', data.version,
    'born', clock[1] .. '.' .. clock[2])
end

steps[ARGV[2]]()
return {'OK', 1, token}
