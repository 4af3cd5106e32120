-- One registered instance in Redis: read, write, remove, and what the replicas are told of it.

local function read(field)
  local found = redis.call('HGET', KEYS[2], field)
  if not found then return nil end
  local revision, lease, mode, check, generation, body = string.match(found, '^(%d+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return {revision = tonumber(revision), lease = lease, mode = mode, check = check, generation = generation, body = body}
end

local function publish(kind, field, one)
  revision = revision + 1
  changes[#changes + 1] = {revision, kind, field, one.lease, one.mode, one.check, one.generation, one.body}
  return string.format('ok %.0f', revision)
end

local function write(kind, field, one)
  local answer = publish(kind, field, one)
  local words = {string.format('%.0f', revision), one.lease, one.mode, one.check, one.generation, one.body}
  redis.call('HSET', KEYS[2], field, table.concat(words, ' '))
  return answer
end

local function remove(kind, field, one)
  redis.call('HDEL', KEYS[2], field)
  redis.call('HDEL', KEYS[3], field)
  one.body = ''
  return publish(kind, field, one)
end

local function ended(field, generation)
  local till = redis.call('ZSCORE', KEYS[4], field .. '/' .. generation)
  return till and tonumber(till) > now
end
