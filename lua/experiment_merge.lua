-- experiment_merge: add outcomes to the counters of one experiment, each event once.
--
-- Replicas add what they received and get the totals of all. Every change raises seq, so that a Redis which forgot is found
-- out: its state is missing, or its seq is behind what Postgres holds. Redis TIME is the one clock, and never steps back.
--
-- KEYS[1] {x:name}:state    hash  seq; born: when it was laid here; window and its events; journaled, trimmed: ends of the
--                                 journal; saved: seq that Postgres holds; version of the weights
-- KEYS[2] {x:name}:totals   hash  counters, integers by field
-- KEYS[3] {x:name}:latency  hash  histogram of latencies, integers by field
-- KEYS[4] {x:name}:journal  list  what Postgres does not hold yet, an item for each kind and merge: "e<event> <event>",
--                                 and in the same way q, X, S, E, O with units; "u<unit>=<what it got> ..." of experiment_enrol
--         {x:name}:seen:<window>:<bucket>  set   events of a day, 64-bit integers; bucket: their last four digits
--         {x:name}:dated:<window>          string  one bit for each bucket of the day that exists
--         {x:name}:odd                     set   units that are quarantined
--         {x:name}:told:<kind>:<bucket>    set   units that gave what a unit may give once, as long as the experiment
--                                 exists: X itself, with its first outcome; S success, E error, O over the limit as evidence
-- ARGV[1] seq that Postgres holds, integer >= 0
-- ARGV[2] 1 to get the totals, 0 to save the time
-- ARGV[3] JSON: events [event, class, value, unit, ...], "" for a unit of its own; classes [[field, amount, ...], ...],
--         fields of a value first, "" for none; evidence [[[kind, 1 if it tells, field, amount, ...], ...] of each class, X before others];
--         latencies [field of each class, ""]; odd [unit, ...]
-- ARGV[4] when the caller knows the state to have been laid here: what it remembers of units and weights is of that state
-- Returns {"OK", seq, numbers of repeated events from 0, version, odd units, totals as a flat list}
--   or, before anything was done: {"FORGOT"} | {"BEHIND", seq} | {"FULL"}: more events in a day than are remembered
-- Cost: O(events + fields of the classes); 1 to 4 commands an event, 1 to 2 in a busy experiment, and 1 for each
-- kind of evidence of an event with a unit.

local call = redis.call
local WINDOW_S = 86400           -- an event is remembered for this window and the next: 24 to 48 hours
local KEEP_S = 176400            -- two windows and an hour
local WINDOW_EVENTS_MAX = 20000000  -- 160 MB to 300 MB of memory
local ODD_MAX = 10000            -- more quarantined units are a broken client, not a mishap

local head = call('HMGET', KEYS[1], 'seq', 'window', 'events', 'born')
if not head[1] or head[4] ~= ARGV[4] then return {'FORGOT'} end
if tonumber(head[1]) < tonumber(ARGV[1]) then return {'BEHIND', head[1]} end
local prefix = string.sub(KEYS[1], 1, -6)
local work = cjson.decode(ARGV[3])
local window = math.max(tonumber(head[2]), math.floor(tonumber(call('TIME')[1]) / WINDOW_S))
local events = window == tonumber(head[2]) and tonumber(head[3]) or 0
if events + #work.events / 4 > WINDOW_EVENTS_MAX then return {'FULL'} end

local counts, sums, latencies, repeated, carried = {}, {}, {}, {}, {}
local journal = {e = {}, q = {}, X = {}, S = {}, E = {}, O = {}}
local function add(to, field, amount)
  to[field] = (to[field] or 0) + amount
end
local function note(kind, item)
  local items = journal[kind]
  items[#items + 1] = item
end

-- Which buckets of a day exist: one bit each, so that most events need one command and not three.
local today, day_before = prefix .. 'seen:' .. window .. ':', prefix .. 'seen:' .. (window - 1) .. ':'
local dated = call('GET', prefix .. 'dated:' .. window) or ''
local dated_before = call('GET', prefix .. 'dated:' .. (window - 1)) or ''
local function stands(bits, bucket)
  local byte = string.byte(bits, math.floor(bucket / 8) + 1)
  return byte and bit.band(byte, bit.rshift(128, bucket % 8)) ~= 0
end

-- include: lib/once.lua
local new = {}
for i = 1, #work.events, 4 do
  local event, class, value, unit = work.events[i], work.events[i + 1], work.events[i + 2], work.events[i + 3]
  local digits = string.sub(event, -4)
  local bucket = math.abs(tonumber(digits))
  if stands(dated_before, bucket) and call('SISMEMBER', day_before .. digits, event) == 1
    or call('SADD', today .. digits, event) == 0 then
    repeated[#repeated + 1] = (i - 1) / 4
  else
    if not new[bucket] and not stands(dated, bucket) then
      new[bucket] = true
      call('EXPIRE', today .. digits, KEEP_S)
      call('SETBIT', prefix .. 'dated:' .. window, bucket, 1)
    end
    note('e', event)
    add(counts, class, 1)
    events = events + 1
    if value ~= 0 then add(sums, work.classes[class][1], value) end
    take_once(work.evidence[class], unit)
  end
end
if dated == '' and next(new) then call('EXPIRE', prefix .. 'dated:' .. window, KEEP_S) end

for _, unit in ipairs(work.odd) do
  if call('SCARD', prefix .. 'odd') < ODD_MAX and call('SADD', prefix .. 'odd', unit) == 1 then
    note('q', unit)
  end
end

for class, count in pairs(counts) do
  local fields = work.classes[class]
  for i = 2, #fields, 2 do add(sums, fields[i], count * fields[i + 1]) end
  if work.latencies[class] ~= '' then add(latencies, work.latencies[class], count) end
end
for piece, count in pairs(carried) do
  for i = 3, #piece, 2 do add(sums, piece[i], count * piece[i + 1]) end
end
add(sums, 'duplicates', #repeated)
for field, amount in pairs(sums) do call('HINCRBY', KEYS[2], field, string.format('%.0f', amount)) end
for field, amount in pairs(latencies) do call('HINCRBY', KEYS[3], field, string.format('%.0f', amount)) end
local lines = {}
for kind, items in pairs(journal) do
  if #items > 0 then lines[#lines + 1] = kind .. table.concat(items, ' ') end
end
if #lines > 0 then
  call('RPUSH', KEYS[4], unpack(lines))
  call('HINCRBY', KEYS[1], 'journaled', #lines)
end
call('HSET', KEYS[1], 'window', window, 'events', events)
return {'OK', call('HINCRBY', KEYS[1], 'seq', 1), repeated, tonumber(call('HGET', KEYS[1], 'version') or 0), call('SCARD', prefix .. 'odd'),
  ARGV[2] == '1' and call('HGETALL', KEYS[2]) or {}}
