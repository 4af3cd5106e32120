-- ledger_apply: decide a batch of money operations of one ledger shard, in order, each at most once.
--
-- Every key of a shard starts with its hash tag, for example {s00}: . Keys that only an operation's state names
-- (the account behind a reservation, holds that are due) are built here from that prefix; they are in the same slot.
--
-- KEYS[1] {s00}:shard    hash    generation, seq (last given), at (its Unix ms), durable (last seq known in Postgres)
-- KEYS[2] {s00}:outbox   stream  what is not yet durable: id <generation>-<last seq>, fields operations, values results
-- KEYS[3] {s00}:expiry   zset    reservation id by the Unix ms at which it expires
--         {s00}:account:<tenant>    hash    balance, reserved, incoming, version, created_at, controls and settings
--         {s00}:holds:<tenant>      zset    reservation id by the Unix ms at which it expires
--         {s00}:reservation:<id>    hash    tenant, amount, status, purpose, expires_at, committed, counted; a day after closing
--         {s00}:refunds:<id>        string  refunded so far of that transaction; a day
--         {s00}:idem:<hash>         string  fingerprint (22 characters) and the first answer; 24 h
-- ARGV[1] generation that the caller knows, integer > 0
-- ARGV[2] seq that is durable in Postgres, integer >= -1
-- ARGV[3] channel to tell the highest seq to, or "" when the caller itself writes the chain
-- ARGV[4] shard number;  ARGV[5], ARGV[6] what its transaction ids are masked with: 14 and 48 bits
-- ARGV[7] ... operations, one JSON object each; fields: app/credits/operation.py
-- Returns {"OK", first seq given + 0, seq, at, results...}, one JSON array for each operation:
--   ["ok",seq,at,balance,reserved,version,tenant,amount,extra]   applied; a tenth element says what became of controls
--   ["many",[...],[...]]        applied as several events
--   ["replay",answer]           the key was used by the same request: its first answer
--   ["reused"]                  the key was used by another request
--   ["unknown"]                 no such reservation in Redis: ask Postgres and come back with evidence
--   [code,...]                  refused; nothing changed, but holds that were due have expired
-- or, before anything was done: {"FORGOT"} | {"GENERATION", g} | {"BEHIND", seq}
-- Cost: O(operations), about 6 commands each; an expired hold adds 6.
-- include: lib/shard.lua
-- include: lib/controls.lua
-- include: lib/account.lua
-- include: lib/spend.lua
-- include: lib/hold.lua
-- include: lib/transfer.lua

local function decide(op, raw)
  if op.key then
    local known = call('GET', prefix .. 'idem:' .. op.key)
    if known then
      if string.sub(known, 1, 22) ~= op.fp then return '["reused"]' end
      return '["replay",' .. string.sub(known, 23) .. ']'
    end
    if op.refuse then return refuse(op, op.refuse) end
  end
  return verbs[op.op](op, raw)
end

local results = {'OK', seq + 1, 0, 0}
for i = 7, #ARGV do
  results[i - 2] = decide(cjson.decode(ARGV[i]), ARGV[i])
end
flush()
if seq >= first then
  call('HSET', KEYS[1], 'seq', seq, 'at', at)
  if ARGV[3] ~= '' then call('PUBLISH', ARGV[3], seq) end
end
results[3] = seq
results[4] = at
return results
