-- Shared functions, placed before `commit` and `trim`: which finished invocations a shard remembers no longer.
-- KEYS: none (names are built from the namespace; one namespace lives in one primary)
-- ARGV: none of its own
-- Returns: nothing of its own
-- Promise 9: memory of finished invocations is bounded by count and time, and goes with their `ids`.
local call = redis.call

-- The names of a shard's keys, each built when it is first used.
local naming = {__index = function(names, key)
  local name = names.prefix .. ':' .. key
  names[key] = name
  return name
end}

-- Calls `command key <values[at], …>` in slices of at most 1,000.
local function sliced(command, key, at, count, values)
  for first = at, at + count - 1, 1000 do
    call(command, key, unpack(values or ARGV, first, math.min(first + 999, at + count - 1)))
  end
end

-- Forgets the oldest `excess` of `done`, and entries as old as `too_old` in ms, at most so many; returns how many.
local function forget_done(names, most, excess, too_old)
  local ids = names.ids
  -- Up to an id without a sequence is up to the end of its millisecond: most often nothing.
  local stop = excess > 0 and '+' or string.format('%.0f', too_old)
  local oldest = call('XRANGE', names.done, '-', stop, 'COUNT', most)
  local old, invocations, forgotten = {}, {}, {}
  for k, entry in ipairs(oldest) do
    if excess < k and tonumber(string.match(entry[1], '^(%d+)')) > too_old then break end
    old[k], invocations[k] = entry[1], entry[2][2]
  end
  sliced('XDEL', names.done, 1, #old, old)
  for first = 1, #old, 1000 do
    local last = math.min(first + 999, #old)
    for k, entry in ipairs(call('HMGET', ids, unpack(invocations, first, last))) do
      if entry == 'd' .. old[first + k - 1] then forgotten[#forgotten + 1] = invocations[first + k - 1] end
    end
  end
  sliced('HDEL', ids, 1, #forgotten, forgotten)
  return #old
end

-- Forgets kept outcomes whose time is over, at most so many; returns how many.
local function forget_kept(names, most, now)
  local kept = call('ZRANGEBYSCORE', names.forget, '-inf', now, 'LIMIT', 0, most)
  sliced('HDEL', names.outcomes, 1, #kept, kept)
  sliced('HDEL', names.digests, 1, #kept, kept)
  sliced('HDEL', names.ids, 1, #kept, kept)
  sliced('ZREM', names.forget, 1, #kept, kept)
  return #kept
end
