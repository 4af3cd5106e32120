-- The shard's head, the clock, and how an event leaves: shared by every verb of ledger_apply.
local call = redis.call
local MAX = 99999999999999        -- 10^14 - 1: the largest number that Lua prints with all its digits
local REMEMBER_S = 86400          -- a day: how long an answer is given again
local CLOSED_S = 86400            -- a day: how long a closed reservation is known without Postgres

local OUTBOX_WORDS = 256          -- words of one outbox item: 128 events, far from Lua's limit of 8,000

local prefix = string.sub(KEYS[1], 1, -6)
local head = call('HMGET', KEYS[1], 'generation', 'seq', 'at', 'durable')
if not head[1] or not head[2] then return {'FORGOT'} end
if head[1] ~= ARGV[1] then return {'GENERATION', head[1]} end
local seq, at, durable = tonumber(head[2]), tonumber(head[3]), tonumber(ARGV[2])
if seq < durable then return {'BEHIND', seq} end
local first = seq + 1

-- The clock may step back; the ledger's time does not.
local clock = redis.call('TIME')
at = math.max(at, tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))

if durable > tonumber(head[4]) then
  call('HSET', KEYS[1], 'durable', durable)
  call('XTRIM', KEYS[2], 'MINID', '~', ARGV[1] .. '-' .. (durable + 1))
end

local verbs = {}

-- The id of the event with this seq: a UUIDv7 (RFC 9562) of its time, shard, generation and seq.
local function uuid(of_seq)
  local rest = (of_seq + tonumber(ARGV[6])) % 281474976710656
  local variant = 32768 + (tonumber(ARGV[1]) + tonumber(ARGV[5])) % 16384
  return string.format('%08x-%04x-7%03x-%04x-%012x',
    math.floor(at / 65536), at % 65536, tonumber(ARGV[4]), variant, rest)
end

-- Events leave as items of the outbox: field = operation, value = result, so one XADD carries many.
local outbox = {}
local function flush()
  if #outbox > 0 then call('XADD', KEYS[2], ARGV[1] .. '-' .. seq, unpack(outbox)) end
  outbox = {}
end

local function emit(raw, a, amount, extra)
  seq = seq + 1
  local result = '["ok",' .. seq .. ',' .. at .. ',' .. a.balance .. ',' .. a.reserved .. ',' .. a.version
    .. ',"' .. a.tenant .. '",' .. amount .. ',' .. (extra or 'null') .. (a.news or '') .. ']'
  if a.news then a.news = nil end
  local n = #outbox
  outbox[n + 1] = raw
  outbox[n + 2] = result
  if n > OUTBOX_WORDS then flush() end
  return result
end

local function remember(op, answer)
  if op.key then call('SET', prefix .. 'idem:' .. op.key, op.fp .. answer, 'EX', REMEMBER_S) end
end

local function applied(op, result)
  remember(op, '["ok",' .. seq .. ']')
  return result
end

-- A refusal ends with the id of the request that first met it, so that a replay can give the very same answer.
local function refusal(op, answer)
  return string.sub(answer, 1, -2) .. ',"' .. (op.rid or '') .. '"]'
end

local function refuse(op, answer)
  answer = refusal(op, answer)
  remember(op, answer)
  return answer
end

local function stale(op, a)
  return op.expect and op.expect ~= a.version and refuse(op, '["version_conflict",' .. a.version .. ']')
end
