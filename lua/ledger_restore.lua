-- ledger_restore: lay Postgres over Redis, one part at a time, while the shard is closed.
--
-- The first call closes the shard (its head goes, so ledger_apply refuses); the last one opens it with a new
-- generation. A call that names an older epoch than the one that restores now is refused: two writers never mix.
--
-- KEYS[1] {s00}:shard    hash    as in ledger_apply; while it is closed only the field "restoring" (the epoch)
-- KEYS[2] {s00}:outbox   stream  as in ledger_apply
-- KEYS[3] {s00}:expiry   zset    as in ledger_apply
-- ARGV[1] epoch of the writer, integer > 0
-- ARGV[2] what to do: doubt | close | hold | adopt | clear | accounts | holds | answers | open
-- ARGV[3] ... doubt: generation, whose head goes, so that its writer rebuilds it (any replica may; epoch 0);
--         close, hold: nothing;  adopt: generation, seq that is durable;  clear: keys of this shard;
--         accounts: tenant, balance, reserved, incoming, version, created_at ms, settings, controls or "";
--         holds: id, tenant, amount, purpose, expires_at ms or 0, status, counted or "";
--         answers: hash, value, seconds to live;
--         open: generation, seq, at ms
-- Returns {"OK"} | {"FENCED", epoch of the other}
-- Cost: O(arguments).

local call = redis.call
local prefix = string.sub(KEYS[1], 1, -6)
local epoch, verb = tonumber(ARGV[1]), ARGV[2]
if verb == 'doubt' then
  if call('HGET', KEYS[1], 'generation') == ARGV[3] then call('DEL', KEYS[1]) end
  return {'OK'}
end
local other = tonumber(call('HGET', KEYS[1], 'restoring') or 0)
if other > epoch or (verb ~= 'close' and verb ~= 'hold' and other ~= epoch) then return {'FENCED', other} end

local steps = {}

function steps.close()
  call('DEL', KEYS[1])
  call('HSET', KEYS[1], 'restoring', epoch)
end

-- Keep what Redis holds; no script is accepted meanwhile, because Postgres has a newer generation already.
function steps.hold()
  call('HSET', KEYS[1], 'restoring', epoch)
end

-- What Redis holds is a prefix of what happened, and all of it is durable now: only the generation is new.
function steps.adopt()
  call('HSET', KEYS[1], 'generation', ARGV[3], 'durable', ARGV[4])
  call('HDEL', KEYS[1], 'restoring')
  call('DEL', KEYS[2])
end

function steps.clear()
  for i = 3, #ARGV do
    if string.sub(ARGV[i], 1, #prefix) == prefix and ARGV[i] ~= KEYS[1] then call('UNLINK', ARGV[i]) end
  end
end

function steps.accounts()
  for i = 3, #ARGV, 8 do
    call('HSET', prefix .. 'account:' .. ARGV[i], 'balance', ARGV[i + 1], 'reserved', ARGV[i + 2],
      'incoming', ARGV[i + 3], 'version', ARGV[i + 4], 'created_at', ARGV[i + 5])
    for name, text in pairs(cjson.decode(ARGV[i + 6])) do call('HSET', prefix .. 'account:' .. ARGV[i], name, text) end
    if ARGV[i + 7] ~= '' then call('HSET', prefix .. 'account:' .. ARGV[i], 'controls', ARGV[i + 7]) end
  end
end

function steps.holds()
  for i = 3, #ARGV, 7 do
    local id, tenant, expires_at = ARGV[i], ARGV[i + 1], ARGV[i + 4]
    call('HSET', prefix .. 'reservation:' .. id, 'tenant', tenant, 'amount', ARGV[i + 2], 'status', ARGV[i + 5],
      'purpose', ARGV[i + 3], 'expires_at', expires_at)
    if ARGV[i + 6] ~= '' then call('HSET', prefix .. 'reservation:' .. id, 'counted', ARGV[i + 6]) end
    if tonumber(expires_at) > 0 then
      call('ZADD', prefix .. 'holds:' .. tenant, expires_at, id)
      call('ZADD', KEYS[3], expires_at, id)
    end
  end
end

-- The first one laid stays: what the chain says comes before refusals, one of which may never have been given.
function steps.answers()
  for i = 3, #ARGV, 3 do
    call('SET', prefix .. 'idem:' .. ARGV[i], ARGV[i + 1], 'EX', ARGV[i + 2], 'NX')
  end
end

function steps.open()
  call('HSET', KEYS[1], 'generation', ARGV[3], 'seq', ARGV[4], 'at', ARGV[5], 'durable', ARGV[4])
  call('HDEL', KEYS[1], 'restoring')
end

steps[verb]()
return {'OK'}
