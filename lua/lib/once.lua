-- What a unit adds once, as long as an experiment exists: its first outcome, and the evidence of each kind.
local TOLD_MAX = 5000000         -- units of S, E and O, 40 MB to 80 MB; outcomes of further ones count and are no evidence
local EXPOSED_MAX = 5000000      -- units of X, 40 MB to 80 MB; further ones are not held against the shares
local CARRIED_MAX = 4000000000 - 1000  -- pieces of evidence: what the statistic takes, less the outcomes of one call

-- Whether an outcome of a unit is evidence of a kind: the first that tells is, and whatever comes before it. A second one
-- would come from a variant that is known by then.
local spent = call('HMGET', KEYS[2], 'told', 'carried', 'exposed')
local told, pieces, exposed = tonumber(spent[1] or 0), tonumber(spent[2] or 0), tonumber(spent[3] or 0)
local function told_key(kind, unit)
  return prefix .. 'told:' .. kind .. ':' .. string.sub(unit, -4)
end
local function is_evidence(kind, tells, unit, unseen)
  if tells == 1 and pieces >= CARRIED_MAX then return false end
  if unit ~= '' then
    if tells == 0 and unseen then return true end
    local key = told_key(kind, unit)
    if tells == 0 then return call('SISMEMBER', key, unit) == 0 end
    if told >= TOLD_MAX or call('SADD', key, unit) == 0 then return false end
    note(kind, unit)
    told = told + 1
    add(sums, 'told', 1)
  end
  if tells == 1 then
    pieces = pieces + 1
    add(sums, 'carried', 1)
  end
  return true
end

-- Whether this is the first outcome of a unit; one of its own is always new.
local function is_exposure(unit)
  if unit == '' then return true end
  if exposed >= EXPOSED_MAX or call('SADD', told_key('X', unit), unit) == 0 then return false end
  note('X', unit)
  exposed = exposed + 1
  add(sums, 'exposed', 1)
  return true
end

-- Take what an outcome adds once for its unit.
local function take_once(pieces_of_class, unit)
  local unseen = false
  for _, piece in ipairs(pieces_of_class) do
    if piece[1] == 'X' then
      unseen = is_exposure(unit)
      if unseen then add(carried, piece, 1) end
    elseif is_evidence(piece[1], piece[2], unit, unseen) then
      add(carried, piece, 1)
    elseif piece[2] == 1 then
      add(sums, 'again', 1)
    end
  end
end
