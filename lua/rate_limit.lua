-- rate_limit: take tokens out of buckets for many requests, in order; each gets them from all its buckets or from none.
--
-- Buckets hold units: 10^9 are one token. So a rate of thousandths of a token a second is a whole number of units a
-- microsecond, and all sums are exact: they stay below 2^53, because a bucket holds at most 10^6 tokens.
-- A bucket that is not there is full; one that has filled up again expires. Redis TIME is the one clock.
--
-- KEYS[1] ... {limits}:<policy>:<id>  string  "<units> <at>": what was in it at that Unix microsecond
-- ARGV[1] ... requests, one JSON array each: [tokens, rate, burst, rate, burst, ...] with a pair for each of its
--             buckets, which are the next ones of KEYS; tokens 1 to the least burst; rate in 1/1000 token a second,
--             1 to 10^9; burst in tokens, 1 to 10^6
-- Returns an array for each request: {0 or the number of its first bucket with too little, units of each bucket after it...}
-- Cost: O(buckets), two commands each
local UNITS = 1000000000
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

-- What is in a bucket now, and as of when: later than now if the clock has stepped back, and then nothing flows in.
local function level(key, rate, capacity)
  local found = redis.call('GET', key)
  if not found then return capacity, now end
  local units, at = string.match(found, '^(%d+) (%d+)$')
  units, at = math.min(tonumber(units), capacity), tonumber(at)
  if at >= now then return units, at end
  local inflow = (now - at) * rate
  if inflow >= capacity - units then return capacity, now end
  return units + inflow, now
end

local function save(key, units, at, rate, capacity)
  local full_us = (capacity - units) / rate + at - now
  redis.call('SET', key, string.format('%.0f %.0f', units, at), 'PX', string.format('%.0f', math.ceil(full_us / 1000) + 1))
end

local answers = {}
local used = 0
for i = 1, #ARGV do
  local request = cjson.decode(ARGV[i])
  local cost = request[1] * UNITS
  local answer, times = {0}, {}
  local buckets = (#request - 1) / 2
  for b = 1, buckets do
    answer[b + 1], times[b] = level(KEYS[used + b], request[2 * b], request[2 * b + 1] * UNITS)
    if answer[1] == 0 and answer[b + 1] < cost then answer[1] = b end
  end
  if answer[1] == 0 then
    for b = 1, buckets do
      answer[b + 1] = answer[b + 1] - cost
      save(KEYS[used + b], answer[b + 1], times[b], request[2 * b], request[2 * b + 1] * UNITS)
    end
  end
  used = used + buckets
  answers[i] = answer
end
return answers
