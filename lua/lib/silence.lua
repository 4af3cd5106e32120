-- Heartbeats, and what becomes of an instance that sends none.

local function hear(words)
  for i = 2, #words, 2 do
    local field, generation = words[i], words[i + 1]
    local one = read(field)
    if one and one.generation == generation then
      redis.call('HSET', KEYS[3], field, now)
      beats[#beats + 1] = field
      beats[#beats + 1] = generation
      if one.lease == 'suspect' then
        one.lease = 'up'
        write('up', field, one)
      end
    end
  end
  return 'ok 0'
end

-- A heartbeat from the future was noted by a release that went by the wall clock: the silence counts from now.
local function silence(field)
  local at = tonumber(redis.call('HGET', KEYS[3], field) or '0')
  if at <= now then return now - at end
  redis.call('HSET', KEYS[3], field, now)
  return 0
end

local function judge(kind, field, one, least_ms)
  local silent = silence(field)
  if silent < least_ms then return string.format('fresh %.0f', silent) end
  if kind == 'suspect' then
    if one.lease == 'suspect' then return 'known 0' end
    one.lease = 'suspect'
    return write('suspect', field, one)
  end
  if now - evicting >= 60000 then evicting, evicted = now, 0 end
  if evicted >= tonumber(ARGV[4]) then return 'kept 0' end
  evicted = evicted + 1
  redis.call('HSET', KEYS[1], 'evicting', string.format('%.0f', evicting), 'evicted', evicted)
  return remove('evict', field, one)
end
