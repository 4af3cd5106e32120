-- Quotas and low-balance thresholds. Only an account that has one carries the field `controls`, eight words:
--   threshold (-1: none), low (0: not above it yet, 1: armed, 2: told), limit of the quota (-1: none), its period, used,
--   Unix ms at which its window ends, percent told in this window, count: the version with which the count began.
-- What changes there leaves with the event that changed it, as a.news, so that Postgres has it in the same transaction.
local HOUR_MS, DAY_MS = 3600000, 86400000

-- The Unix ms at which the UTC hour, day or month of `at` ends. Years are counted from March, so that a leap day ends one.
local function window_end(period)
  if period == 'hour' then return (math.floor(at / HOUR_MS) + 1) * HOUR_MS end
  local day = math.floor(at / DAY_MS)
  if period == 'day' then return (day + 1) * DAY_MS end
  local era, of_era = math.floor((day + 719468) / 146097), (day + 719468) % 146097
  local leap_days = math.floor(of_era / 1460) - math.floor(of_era / 36524) + math.floor(of_era / 146096)
  local year = math.floor((of_era - leap_days) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  local following = math.floor((153 * (month + 1) + 2) / 5)
  if month == 11 then
    local ends = era * 400 + year + 1
    following = ends % 4 == 0 and (ends % 100 ~= 0 or ends % 400 == 0) and 366 or 365
  end
  return (day - of_year + following) * DAY_MS
end

local function controls_of(text)
  local threshold, low, limit, period, used, resets, told, count =
    string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {text = text, threshold = tonumber(threshold), low = tonumber(low), limit = tonumber(limit), period = period,
    used = tonumber(used), resets = tonumber(resets), told = tonumber(told), count = tonumber(count)}
end

-- Have the next event tell what has changed, with `more` JSON; c.text is what whoever calls this writes to the account.
local function keep(a, alerts, more)
  local c = a.controls
  local text = c.threshold .. ' ' .. c.low .. ' ' .. c.limit .. ' ' .. c.period .. ' ' .. c.used .. ' ' .. c.resets
    .. ' ' .. c.told .. ' ' .. c.count
  if text == c.text then return end
  c.text = text
  if c.threshold < 0 and c.limit < 0 then
    call('HDEL', a.key, 'controls')
    a.controls, a.news = nil, ',{}'
    return
  end
  a.news = ',{"low":' .. c.low .. (alerts ~= '' and ',"alerts":[' .. alerts .. ']' or '') .. (more or '')
  if c.limit >= 0 then
    a.news = a.news .. ',"used":' .. c.used .. ',"resets_at_ms":' .. c.resets .. ',"told":' .. c.told
      .. ',"count":' .. c.count
  end
  a.news = a.news .. '}'
end

-- Begin the count of the window of now, if another one has ended.
local function roll(a)
  local c = a.controls
  if c.limit >= 0 and at >= c.resets then
    c.used, c.told, c.resets, c.count = 0, 0, window_end(c.period), a.version + 1
  end
  return c
end

local function level(c)
  if c.used >= c.limit then return 100 end
  return c.used * 5 >= c.limit * 4 and 80 or 0
end

local function quota_alert(c, kind)
  return '{"type":"credits.' .. kind .. '","limit":' .. c.limit .. ',"period":"' .. c.period .. '"}'
end

-- Look at the controls with the balance and the use that an event leaves. A threshold that was told of is armed again
-- by a balance that is more than a tenth above it.
local function watch(a)
  local c, alerts = a.controls, ''
  if c.threshold >= 0 then
    if a.balance > c.threshold + (c.low == 2 and math.floor((c.threshold + 9) / 10) or 0) then
      c.low = 1
    elseif c.low == 1 and a.balance <= c.threshold then
      c.low = 2
      alerts = '{"type":"credits.low_balance","threshold":' .. c.threshold .. '}'
    end
  end
  if c.limit >= 0 and level(c) > c.told then
    c.told = level(c)
    alerts = alerts .. (alerts ~= '' and ',' or '') .. quota_alert(c, c.told == 100 and 'quota_exceeded' or 'quota_warning')
  end
  keep(a, alerts)
end

-- Count a spend of an account with controls, or give back what a hold of the same count has claimed and not spent.
local function use_quota(a, amount)
  local c = a.controls
  if c.limit >= 0 then c.used = roll(a).used + amount end
end

local function return_quota(a, amount, counted)
  local c = a.controls
  if c and c.limit >= 0 and roll(a).count == tonumber(counted) then c.used = c.used - amount end
end

-- Take over what people set. A balance below another threshold than before has crossed it, unless it was told of already;
-- a new account has crossed nothing. Another period begins a new count; another limit alone goes on with the old one.
local function regulate(a, settings, opening)
  local threshold, quota = settings.low_balance_threshold, settings.quota
  if not a.controls and (threshold or cjson.null) == cjson.null and (quota or cjson.null) == cjson.null then return end
  local c = a.controls or {threshold = -1, low = 0, limit = -1, period = '-', used = 0, resets = 0, told = 0, count = 0}
  a.controls = c
  if threshold ~= nil then
    threshold = threshold == cjson.null and -1 or tonumber(threshold)
    if threshold ~= c.threshold and (c.low ~= 2 or a.balance > threshold) then c.low = opening and 0 or 1 end
    c.threshold = threshold
    if threshold < 0 then c.low = 0 end
  end
  if quota == cjson.null then
    c.limit, c.period, c.used, c.resets, c.told, c.count = -1, '-', 0, 0, 0, 0
  elseif quota ~= nil then
    quota = cjson.decode(quota)
    if quota.period ~= c.period then c.resets = 0 end
    c.limit, c.period = quota.limit, quota.period
    roll(a)
    c.told = math.min(c.told, level(c))
  end
end
