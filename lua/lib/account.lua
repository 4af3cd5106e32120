-- One account: loaded, saved, rid of holds that are due because a spend may need them, and what it can spend.

local function account(tenant)
  local key = prefix .. 'account:' .. tenant
  local f = call('HMGET', key, 'balance', 'reserved', 'version', 'incoming', 'controls')
  if not f[1] then return nil end
  local a = {key = key, tenant = tenant, balance = tonumber(f[1]), reserved = tonumber(f[2]),
    version = tonumber(f[3]), incoming = tonumber(f[4] or 0)}
  if f[5] then a.controls = controls_of(f[5]) end
  return a
end

local function save(a)
  local c = a.controls
  if c then watch(a) end
  a.version = a.version + 1
  if c and a.news and a.controls then
    call('HSET', a.key, 'balance', a.balance, 'reserved', a.reserved, 'version', a.version, 'controls', c.text)
  else
    call('HSET', a.key, 'balance', a.balance, 'reserved', a.reserved, 'version', a.version)
  end
end

-- Take back one hold. Its record stays for a day, so that a late commit learns what happened.
local function expire(a, id)
  local r = call('HMGET', prefix .. 'reservation:' .. id, 'amount', 'counted')
  local amount = tonumber(r[1])
  a.reserved = a.reserved - amount
  return_quota(a, amount, r[2])
  save(a)
  call('HSET', prefix .. 'reservation:' .. id, 'status', 'expired')
  call('EXPIRE', prefix .. 'reservation:' .. id, CLOSED_S)
  call('ZREM', prefix .. 'holds:' .. a.tenant, id)
  call('ZREM', KEYS[3], id)
  emit('{"op":"expire","ref":"' .. id .. '"}', a, amount)
end

local function expire_due(a)
  if a.reserved == 0 then return end
  for _, id in ipairs(call('ZRANGEBYSCORE', prefix .. 'holds:' .. a.tenant, '-inf', at)) do expire(a, id) end
end

-- Whether the account can spend this much, once the holds that are due have gone.
local function covers(a, amount)
  if a.balance - a.reserved >= amount then return true end
  expire_due(a)
  return a.balance - a.reserved >= amount
end

-- The refusal of a spend that the quota of an account with controls does not cover, or nil. It is not remembered: the
-- next window covers it. The first one of a window is an event, because nothing else would tell of it.
local function over_quota(op, a)
  local c = a.controls
  if c.limit < 0 or roll(a).used + op.amount <= c.limit then return nil end
  expire_due(a)
  if c.used + op.amount <= c.limit then return nil end
  if c.told < 100 then
    c.told = 100
    keep(a, quota_alert(c, 'quota_exceeded'), ',"tenant_id":"' .. a.tenant .. '"')
    call('HSET', a.key, 'controls', c.text)
    local note = {tenant = '', balance = 0, reserved = 0, version = 0, news = a.news}
    a.news = nil
    emit('{"op":"note","kind":"credits.quota_exceeded"}', note, 0)
  end
  return refusal(op, '["quota_exceeded",' .. c.limit .. ',' .. c.used .. ',"' .. c.period .. '",' .. c.resets .. ','
    .. at .. ']')
end

local function insufficient(op, a)
  return refuse(op, '["insufficient_credits",' .. (a.balance - a.reserved) .. ']')
end
