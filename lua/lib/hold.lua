-- Reserve, commit, abort, sweep. A reservation leaves "held" exactly once, inside one script, at one clock.

local function hold(op, a, purpose, expires_at)
  local id = uuid(seq + 1)
  call('HSET', prefix .. 'reservation:' .. id, 'tenant', op.tenant, 'amount', op.amount, 'status', 'held',
    'purpose', purpose, 'expires_at', expires_at or 0)
  if purpose == 'spend' and a.controls and a.controls.limit >= 0 then
    call('HSET', prefix .. 'reservation:' .. id, 'counted', a.controls.count)
  end
  if expires_at then
    call('ZADD', prefix .. 'holds:' .. op.tenant, expires_at, id)
    call('ZADD', KEYS[3], expires_at, id)
  end
end

local function close(op, a, status, committed)
  local key = prefix .. 'reservation:' .. op.ref
  call('HSET', key, 'status', status, 'committed', committed)
  call('EXPIRE', key, CLOSED_S)
  call('ZREM', prefix .. 'holds:' .. a.tenant, op.ref)
  call('ZREM', KEYS[3], op.ref)
end

-- The open reservation that op.ref names, its account, and the count of the quota that it belongs to; or the refusal, third.
local function open_hold(op, transfer)
  local r = call('HMGET', prefix .. 'reservation:' .. op.ref, 'tenant', 'amount', 'status', 'purpose', 'expires_at',
    'counted')
  if not r[1] then return nil, nil, '["unknown"]' end
  if (r[4] ~= 'spend') ~= (transfer or false) then return nil, nil, refuse(op, '["no_reservation"]') end
  if r[3] ~= 'held' then return nil, nil, refuse(op, '["reservation_' .. r[3] .. '"]') end
  local a = account(r[1])
  if not transfer and tonumber(r[5]) <= at then
    expire(a, op.ref)
    return nil, nil, refuse(op, '["reservation_expired"]')
  end
  return tonumber(r[2]), a, stale(op, a), r[6]
end

function verbs.reserve(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  local no = a.controls and over_quota(op, a) or stale(op, a)
  if no then return no end
  if not covers(a, op.amount) then return insufficient(op, a) end
  if a.controls then use_quota(a, op.amount) end
  hold(op, a, 'spend', at + op.ttl_ms)
  a.reserved = a.reserved + op.amount
  save(a)
  return applied(op, emit(raw, a, op.amount, at + op.ttl_ms))
end

function verbs.commit(op, raw)
  local held, a, no, counted = open_hold(op)
  if no then return no end
  local amount = op.amount or held
  if amount > held then return refusal(op, '["amount_exceeds_reservation",' .. held .. ']') end
  a.balance = a.balance - amount
  a.reserved = a.reserved - held
  return_quota(a, held - amount, counted)
  save(a)
  close(op, a, 'committed', amount)
  return applied(op, emit(raw, a, amount, held - amount))
end

function verbs.abort(op, raw)
  local held, a, no, counted = open_hold(op)
  if no then return no end
  a.reserved = a.reserved - held
  return_quota(a, held, counted)
  save(a)
  close(op, a, 'aborted', 0)
  return applied(op, emit(raw, a, held))
end

-- Expire what is due, at most op.limit, so that a sweep never holds up the money for long.
function verbs.sweep(op)
  local due = call('ZRANGEBYSCORE', KEYS[3], '-inf', at, 'LIMIT', 0, op.limit)
  for _, id in ipairs(due) do
    expire(account(call('HGET', prefix .. 'reservation:' .. id, 'tenant')), id)
  end
  return '["swept",' .. #due .. ']'
end

-- An entry that moves nothing: op.kind happened, with op.details. It has no account and so no tenant.
function verbs.note(op, raw)
  return applied(op, emit(raw, {tenant = '', balance = 0, reserved = 0, version = 0}, 0))
end

-- A batch key: remember which batch it stands for. The operations of the batch have keys of their own.
function verbs.claim(op)
  remember(op, '["claimed"]')
  return '["claimed"]'
end
