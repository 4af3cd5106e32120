-- Accounts, top-up, consume, refund.

-- What people set on an account: each a field of its hash, JSON text; null takes it away.
-- Returns what the account says about itself afterwards, as JSON.
local function set(key, settings)
  for name, text in pairs(settings) do
    if text == cjson.null then call('HDEL', key, name) else call('HSET', key, name, text) end
  end
  local all, state = call('HGETALL', key), {}
  for i = 1, #all, 2 do state[all[i]] = all[i + 1] end
  local created_at = state.created_at
  for _, name in ipairs({'balance', 'reserved', 'incoming', 'version', 'created_at', 'controls'}) do state[name] = nil end
  return '[' .. created_at .. ',' .. cjson.encode(state) .. ']'
end

function verbs.account(op, raw)
  local key = prefix .. 'account:' .. op.tenant
  if call('EXISTS', key) == 1 then return refuse(op, '["account_exists"]') end
  call('HSET', key, 'balance', 0, 'reserved', 0, 'version', 1, 'created_at', at)
  local a = {key = key, tenant = op.tenant, balance = 0, reserved = 0, version = 1}
  regulate(a, op.settings, true)
  if a.controls then
    watch(a)
    call('HSET', key, 'controls', a.controls.text)
  end
  return applied(op, emit(raw, a, 0, set(key, op.settings)))
end

function verbs.update(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  local conflict = stale(op, a)
  if conflict then return conflict end
  regulate(a, op.settings)
  if a.controls then a.controls.text = nil end
  save(a)
  return applied(op, emit(raw, a, 0, set(a.key, op.settings)))
end

function verbs.topup(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  local conflict = stale(op, a)
  if conflict then return conflict end
  if a.balance + a.incoming + op.amount > MAX then return refuse(op, '["balance_limit_exceeded"]') end
  a.balance = a.balance + op.amount
  save(a)
  return applied(op, emit(raw, a, op.amount))
end

function verbs.consume(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  local no = a.controls and over_quota(op, a) or stale(op, a)
  if no then return no end
  if not covers(a, op.amount) then return insufficient(op, a) end
  a.balance = a.balance - op.amount
  if a.controls then use_quota(a, op.amount) end
  save(a)
  return applied(op, emit(raw, a, op.amount))
end

-- op.consumed, op.refunded: what Postgres knows of the transaction op.ref. Refunds only grow, so the larger
-- of what Redis and Postgres know is right, as long as both are of this generation.
function verbs.refund(op, raw)
  if op.generation ~= tonumber(ARGV[1]) then return '["unknown"]' end
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  local conflict = stale(op, a)
  if conflict then return conflict end
  local key = prefix .. 'refunds:' .. op.ref
  local refunded = math.max(tonumber(call('GET', key) or 0), op.refunded)
  local rest = op.consumed - refunded
  local amount = op.amount or rest
  if rest == 0 then return refuse(op, '["already_refunded"]') end
  if amount > rest then return refusal(op, '["refund_exceeds_consumed",' .. rest .. ']') end
  if a.balance + a.incoming + amount > MAX then return refuse(op, '["balance_limit_exceeded"]') end
  a.balance = a.balance + amount
  save(a)
  call('SET', key, refunded + amount, 'EX', CLOSED_S)
  return applied(op, emit(raw, a, amount, refunded + amount))
end
