-- Transactions over several tenants: all legs at once in one shard, or the steps of two-phase commit.
-- A leg's amount is signed: what the tenant gains (+) or gives (-).

-- The legs' accounts, each loaded once, and the first refusal.
local function load_legs(op)
  local of = {}
  for i, leg in ipairs(op.legs) do
    local a = of[leg.tenant_id] or account(leg.tenant_id)
    if not a then return nil, '["no_account",' .. (i - 1) .. ']' end
    of[leg.tenant_id] = a
  end
  return of
end

-- Whether every leg can be applied, in order, to running copies of the balances.
local function check_legs(op, of)
  local gives, gains = {}, {}
  for i, leg in ipairs(op.legs) do
    local a = of[leg.tenant_id]
    if leg.amount < 0 then
      local needed = (gives[a] or 0) - leg.amount
      if not covers(a, needed) then
        return '["insufficient_credits",' .. math.max(0, a.balance - a.reserved - (gives[a] or 0)) .. ',' .. (i - 1) .. ']'
      end
      gives[a] = needed
    else
      gains[a] = (gains[a] or 0) + leg.amount
      if a.balance + a.incoming + gains[a] > MAX then return '["balance_limit_exceeded",' .. (i - 1) .. ']' end
    end
  end
end

function verbs.transfer(op, raw)
  local of, no = load_legs(op)
  no = no or check_legs(op, of)
  if no then return refuse(op, no) end
  local parts, n = {}, #op.legs
  for i, leg in ipairs(op.legs) do
    local a = of[leg.tenant_id]
    a.balance = a.balance + leg.amount
    save(a)
    parts[i] = emit(raw, a, math.abs(leg.amount), '[' .. i .. ',' .. n .. ',' .. leg.amount .. ']')
  end
  remember(op, '["ok",' .. (seq - n + 1) .. ',' .. n .. ']')
  return '["many",' .. table.concat(parts, ',') .. ']'
end

function verbs.prepare_out(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  if not covers(a, op.amount) then return insufficient(op, a) end
  hold(op, a, 'transfer_out')
  a.reserved = a.reserved + op.amount
  save(a)
  return applied(op, emit(raw, a, op.amount))
end

function verbs.prepare_in(op, raw)
  local a = account(op.tenant)
  if not a then return refuse(op, '["no_account"]') end
  if a.balance + a.incoming + op.amount > MAX then return refuse(op, '["balance_limit_exceeded"]') end
  hold(op, a, 'transfer_in')
  a.incoming = a.incoming + op.amount
  save(a)
  call('HSET', a.key, 'incoming', a.incoming)
  return applied(op, emit(raw, a, op.amount))
end

-- Settle (the transfer was decided) or cancel (it was given up) one prepared leg.
local function finish(op, raw, status, balance_sign)
  local held, a, no = open_hold(op, true)
  if no then return no end
  if op.purpose == 'transfer_out' then
    a.reserved = a.reserved - held
    a.balance = a.balance - held * balance_sign
  else
    a.incoming = a.incoming - held
    a.balance = a.balance + held * balance_sign
    call('HSET', a.key, 'incoming', a.incoming)
  end
  save(a)
  close(op, a, status, held * balance_sign)
  return applied(op, emit(raw, a, held))
end

function verbs.settle(op, raw) return finish(op, raw, 'committed', 1) end
function verbs.cancel(op, raw) return finish(op, raw, 'aborted', 0) end
