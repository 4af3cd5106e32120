-- registry_merge: change registered instances, each change by itself and in order, and tell the replicas what changed.
--
-- Every change that is made gets the next revision. Heartbeats get none: they only move a time, unless they bring a
-- suspect instance back. Whether an instance has been silent for long enough is judged here again, by the registry's clock
-- and by the heartbeats of all replicas: a replica that missed some cannot remove what others have heard.
--
-- All times are of that clock, in ms. It begins with the wall clock of Redis and passes as that does from call to call, but
-- never back, and never more than a step: each replica calls every second, so what is more is a clock that was set, a
-- failover to a machine with another one, or a time in which nobody could be heard.
--
-- KEYS[1] {locator}:head        hash    incarnation of this data, revision of the last change; wall, clock: both clocks at
--                                       the last call; evicting, evicted: from when a minute counts removals, how many;
--                                       since: from when on no step was missing, so that times tell how long ago they are
-- KEYS[2] {locator}:instances   hash    <service>/<id>: "<revision> <lease> <mode> <check> <generation> <body>"
-- KEYS[3] {locator}:beats       hash    <service>/<id>: ms of the last heartbeat
-- KEYS[4] {locator}:tombstones  zset    <service>/<id>/<generation> that has ended, by the ms until which it is known
-- KEYS[5] {locator}:replicas    zset    replica by the ms of its last call
-- KEYS[6] {locator}:changes     stream  replica, first: the revision before, changes: [[revision, kind, field, lease, mode,
--                                       check, generation, body]...], beats: [field, generation, ...] (both JSON),
--                                       handed: what one replica has for another (JSON)
-- ARGV[1] name of the calling replica
-- ARGV[2] incarnation to take when there is none
-- ARGV[3] highest revision that the caller knows: revisions never fall, also when Redis has forgotten
-- ARGV[4] how many instances may be removed for silence in a minute
-- ARGV[5] ... changes, JSON arrays: [kind, field, generation, further words]
--             put      tombstone ms, body, check
--                                            register; another generation than the present one ends that; what is
--                                            registered already counts as a heartbeat. A check that is not "none" is
--                                            what an id that is new begins with; another start of it goes on with its own
--             set      "mode" or "check", value
--             tell     word                  changes nothing, is published
--             drop     tombstone ms          an empty generation means any
--             end      tombstone ms          the end of a generation that Redis has forgotten, whether it has that or not
--             beat     field, generation...  heartbeats of many instances
--             suspect  ms of silence         no longer to be looked up
--             evict    ms of silence         remove
--             hand     replica, text: nothing of an instance, is published
--             restore  lease, mode, check, age of the last heartbeat in ms, revision, tombstone ms, body
--                                            what Redis has forgotten, or has as it was at a lower revision; of one that
--                                            has ended the end is told again, for the caller has missed it
-- Returns {incarnation, revision, now, replicas of the last 15 s, changes, answers}; an answer is "ok <revision>", "known 0",
--         "unknown 0", "stale 0" (another generation), "ended 0" (a tombstone), "kept 0" (too many at once), or
--         "fresh <ms>": silent for no longer than that
-- Cost: O(changes), five commands each
local STEP_MAX_MS = 5000 -- below the 15 s after which a replica that does not call is taken for gone
local TOMBSTONES_MAX = 100000 -- about 25 MB: a client that never stops starting anew must not fill Redis
local time = redis.call('TIME')
local wall = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local head = redis.call('HMGET', KEYS[1], 'incarnation', 'revision', 'wall', 'clock', 'evicting', 'evicted')
local passed = wall - tonumber(head[3] or wall)
local now = tonumber(head[4] or wall) + math.max(0, math.min(passed, STEP_MAX_MS))
local incarnation = head[1] or ARGV[2]
local evicting, evicted = tonumber(head[5] or '0'), tonumber(head[6] or '0')
local first = tonumber(head[2] or '0')
local revision = math.max(first, tonumber(ARGV[3]))
local changes, beats, handed, answers = {}, {}, {}, {}

-- JSON of a list; cjson takes an empty table for an object.
local function text(list)
  return #list > 0 and cjson.encode(list) or '[]'
end

-- include: lib/instance.lua
-- include: lib/silence.lua

local function put(field, generation, tombstone_ms, body, first)
  if ended(field, generation) then return 'ended 0' end
  local one = read(field)
  local mode, check = 'none', first
  if one and one.generation == generation then
    if one.body == body and one.lease == 'up' then
      hear({'beat', field, generation})
      return 'known 0'
    end
    mode, check = one.mode, one.check
  elseif one then
    redis.call('ZADD', KEYS[4], now + tombstone_ms, field .. '/' .. one.generation)
    if one.mode ~= 'draining' then mode = one.mode end
    if first ~= 'none' then check = one.check end
  end
  redis.call('HSET', KEYS[3], field, now)
  return write('put', field, {lease = 'up', mode = mode, check = check, generation = generation, body = body})
end

local function lay_end(field, generation, tombstone_ms)
  local one = read(field)
  redis.call('ZADD', KEYS[4], now + tombstone_ms, field .. '/' .. generation)
  if one and one.generation == generation then return remove('drop', field, one) end
  return 'ok 0'
end

local function restore(field, generation, words)
  local one, at = read(field), now - words[7]
  if ended(field, generation) then
    if not one then publish('drop', field, {lease = 'up', mode = 'none', check = 'none', generation = generation, body = ''}) end
    return 'ended 0'
  end
  if one and one.revision >= words[8] then return 'known 0' end
  if one and one.generation == generation then
    at = math.max(at, tonumber(redis.call('HGET', KEYS[3], field) or '0'))
  elseif one then
    redis.call('ZADD', KEYS[4], now + words[9], field .. '/' .. one.generation)
  end
  redis.call('HSET', KEYS[3], field, string.format('%.0f', at))
  local laid = {lease = words[4], mode = words[5], check = words[6], generation = generation, body = words[10]}
  return write('restore', field, laid)
end

local function change(words)
  local kind, field, generation = words[1], words[2], words[3]
  if kind == 'beat' then return hear(words) end
  if kind == 'hand' then
    handed[#handed + 1] = {field, generation}
    return 'ok 0'
  end
  if kind == 'put' then return put(field, generation, words[4], words[5], words[6] or 'none') end
  if kind == 'end' then return lay_end(field, generation, words[4]) end
  if kind == 'restore' then return restore(field, generation, words) end
  local one = read(field)
  if not one then return 'unknown 0' end
  if generation ~= '' and generation ~= one.generation then return 'stale 0' end
  if kind == 'set' then
    if one[words[4]] == words[5] then return 'known 0' end
    one[words[4]] = words[5]
    return write('set', field, one)
  end
  if kind == 'tell' then return publish(words[4], field, one) end
  if kind == 'drop' then
    redis.call('ZADD', KEYS[4], now + words[4], field .. '/' .. one.generation)
    return remove('drop', field, one)
  end
  return judge(kind, field, one, words[4])
end

for i = 5, #ARGV do answers[#answers + 1] = change(cjson.decode(ARGV[i])) end
redis.call('ZADD', KEYS[5], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - 15000)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -(TOMBSTONES_MAX + 1))
redis.call('HSET', KEYS[1], 'wall', string.format('%.0f', wall), 'clock', string.format('%.0f', now))
if not head[1] then redis.call('HSET', KEYS[1], 'incarnation', incarnation) end
if not head[4] or passed < 0 or passed > STEP_MAX_MS then redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now)) end
if #changes > 0 then redis.call('HSET', KEYS[1], 'revision', string.format('%.0f', revision)) end
local told = text(changes)
if #changes + #beats + #handed > 0 then
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', 1000, '*', 'replica', ARGV[1], 'first', string.format('%.0f', first),
    'changes', told, 'beats', text(beats), 'handed', text(handed))
end
local replicas = redis.call('ZRANGE', KEYS[5], 0, -1)
return {incarnation, string.format('%.0f', revision), string.format('%.0f', now), replicas, told, answers}
