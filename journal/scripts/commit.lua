-- A host's numbered, fenced write: the progress of many invocations of several shards. Each shard's part stands alone.
-- KEYS: none
-- ARGV: namespace, limit of an inbox for calls, most entries of `done`, retention in ms, refusal of a full inbox, parts;
--       then for each part: shard, owner (`epoch incarnation`), number, count of arguments that follow, and for each
--       progress: invocation, target, inbox id, flags, and the section of each flag that is set, in this order:
--         1 record | 2 count, event ids | 4 count, field, value, … | 8 count, fields | 16 count, due, member, …
--         32 count, members | 64 count of messages, then shard, invocation, teller, message
--         128 outcome, summary, keep in ms | 256 holds (0/1), reason of a pause | 512 notice
--         1024 count, ids in `journal` written before this part (before 128 or 256 are done) | 2048 asleep (no section)
-- Returns: for each part: `c<first journal id>`, `f<head>` (refused) or `d<reason>` (damaged)
-- Promises 3 and 6: a part appears as a whole, once, and only for the shard's owner.
local ns, inbox_limit, done_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local retention, refusal = tonumber(ARGV[4]), ARGV[5]
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local floor = math.floor

local function section(flags, bit) return floor(flags / bit) % 2 == 1 end

-- Calls `command key <arguments at, …>` in slices of at most 1,000.
local function sliced(command, key, at, count)
  for first = at, at + count - 1, 1000 do
    call(command, key, unpack(ARGV, first, math.min(first + 999, at + count - 1)))
  end
end

-- Ids of one commit follow each other, also where the clock goes on while a script runs (Redis before 7.2).
local function record(key, last, invocation, data)
  local id = '*'
  if last then
    local ms, sequence = string.match(last, '^(%d+)-(%d+)$')
    id = ms .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
  end
  return call('XADD', key, id, 'i', invocation, 'd', data)
end

local function send(replies, prefix, invocation, teller, data)
  if not accept(ns, replies, prefix, invocation, teller, data, teller ~= '' and inbox_limit) then
    tell(ns, replies, teller, invocation, refusal, 'r')
  end
end

local function lay_to_sleep(prefix, invocation, target, inbox_id, asleep, holds, paused, journal)
  local key = prefix .. ':asleep:' .. invocation
  if not asleep then
    local found = call('XRANGE', prefix .. ':inbox', inbox_id, inbox_id)
    call('HSET', key, 'm', found[1][2][2], 'id', inbox_id)
    call('XDEL', prefix .. ':inbox', inbox_id)
    local _, tellers = place_of(call('HGET', prefix .. ':ids', invocation))
    call('HSET', prefix .. ':ids', invocation, 'a' .. inbox_id .. tellers)
    if holds then call('HSET', prefix .. ':held', target, invocation) end
  elseif call('EXISTS', key) == 0 then
    error(invocation .. ' is not asleep')
  end
  for _, id in ipairs(journal) do
    local found = call('XRANGE', prefix .. ':journal', id, id)
    call('HSET', key, 'j' .. id, found[1][2][4])
    call('XDEL', prefix .. ':journal', id)
  end
  if paused ~= '' then call('HSET', key, 'paused', paused) end
end

local function finish(prefix, replies, invocation, target, inbox_id, asleep, outcome, summary, keep, journal)
  local entry = call('HGET', prefix .. ':ids', invocation)
  for teller in string.gmatch(select(2, place_of(entry)), '%S+') do
    tell(ns, replies, teller, invocation, outcome, 'r')
  end
  if asleep then
    call('DEL', prefix .. ':asleep:' .. invocation)
    if call('HGET', prefix .. ':held', target) == invocation then call('HDEL', prefix .. ':held', target) end
  else
    call('XDEL', prefix .. ':inbox', inbox_id)
  end
  for first = 1, #journal, 1000 do
    call('XDEL', prefix .. ':journal', unpack(journal, first, math.min(first + 999, #journal)))
  end
  if keep > 0 then
    call('HSET', prefix .. ':outcomes', invocation, outcome)
    call('ZADD', prefix .. ':forget', now + keep, invocation)
    call('XADD', prefix .. ':done', '*', 'i', invocation, 'o', '', 's', summary)
    call('HSET', prefix .. ':ids', invocation, 'o')
  else
    local id = call('XADD', prefix .. ':done', '*', 'i', invocation, 'o', outcome, 's', summary)
    call('HSET', prefix .. ':ids', invocation, 'd' .. id)
  end
end

-- Forgets at most two finished invocations for each one added.
local function trim(prefix, added)
  local key = prefix .. ':done'
  local excess = call('XLEN', key) - done_max
  local oldest = call('XRANGE', key, '-', '+', 'COUNT', 1)[1][1]
  local old_enough = tonumber(string.match(oldest, '^(%d+)')) <= now - retention
  for _, old in ipairs(call('XRANGE', key, '-', '+', 'COUNT', (excess > 0 or old_enough) and 2 * added or 1)) do
    local id, invocation = old[1], old[2][2]
    if excess <= 0 and tonumber(string.match(id, '^(%d+)')) > now - retention then break end
    excess = excess - 1
    call('XDEL', key, id)
    if call('HGET', prefix .. ':ids', invocation) == 'd' .. id then call('HDEL', prefix .. ':ids', invocation) end
  end
  for _, invocation in ipairs(call('ZRANGEBYSCORE', prefix .. ':forget', '-inf', now, 'LIMIT', 0, 2 * added)) do
    call('HDEL', prefix .. ':outcomes', invocation)
    call('HDEL', prefix .. ':ids', invocation)
    call('ZREM', prefix .. ':forget', invocation)
  end
end

local function apply(prefix, at, stop)
  local replies, first, last, finished, written = {}, '', nil, 0, {}
  while at < stop do
    local invocation, target, inbox_id, flags = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local asleep, journal = section(flags, 2048), {}
    at = at + 4
    if section(flags, 1) then
      local added = record(prefix .. ':journal', last, invocation, ARGV[at])
      if first == '' then first = added end
      last = added
      written[invocation] = written[invocation] or {}
      table.insert(written[invocation], added)
      at = at + 1
    end
    if section(flags, 2) then
      local n = tonumber(ARGV[at]); sliced('XDEL', prefix .. ':events', at + 1, n); at = at + 1 + n
    end
    if section(flags, 4) then
      local n = tonumber(ARGV[at]); sliced('HSET', prefix .. ':state:' .. target, at + 1, n); at = at + 1 + n
    end
    if section(flags, 8) then
      local n = tonumber(ARGV[at]); sliced('HDEL', prefix .. ':state:' .. target, at + 1, n); at = at + 1 + n
    end
    if section(flags, 16) then
      local n = tonumber(ARGV[at]); sliced('ZADD', prefix .. ':timers', at + 1, n); at = at + 1 + n
    end
    if section(flags, 32) then
      local n = tonumber(ARGV[at]); sliced('ZREM', prefix .. ':timers', at + 1, n); at = at + 1 + n
    end
    if section(flags, 64) then
      local n = tonumber(ARGV[at]); at = at + 1
      for _ = 1, n do
        send(replies, ns .. ':' .. ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
        at = at + 4
      end
    end
    if section(flags, 512) then
      local place = call('HGET', prefix .. ':ids', invocation)
      local tellers = place and is_open(place) and select(2, place_of(place)) or ''
      for teller in string.gmatch(tellers, '%S+') do
        tell(ns, replies, teller, invocation, string.byte(teller) == 119 and 'N' .. ARGV[at] or ARGV[at], 'n')
      end
      at = at + 1
    end
    if section(flags, 1024) then
      local n = tonumber(ARGV[at])
      for k = 1, n do journal[k] = ARGV[at + k] end
      at = at + 1 + n
    end
    if section(flags, 128) or section(flags, 256) then
      for _, id in ipairs(written[invocation] or {}) do journal[#journal + 1] = id end
      written[invocation] = nil
    end
    if section(flags, 128) then
      finish(prefix, replies, invocation, target, inbox_id, asleep, ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), journal)
      finished = finished + 1
      at = at + 3
    elseif section(flags, 256) then
      lay_to_sleep(prefix, invocation, target, inbox_id, asleep, ARGV[at] == '1', ARGV[at + 1], journal)
      at = at + 2
    end
  end
  if finished > 0 then trim(prefix, finished) end
  send_replies(ns, replies)
  return first
end

local answers, at = {}, 7
for part = 1, tonumber(ARGV[6]) do
  local prefix, owner, number, count = ns .. ':' .. ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local key = prefix .. ':head'
  local head = call('GET', key) or ''
  local epoch, incarnation, last, answer = string.match(head, '^(%d+) (%S+) (%d+) ?(.*)$')
  at = at + 4
  if not epoch or epoch .. ' ' .. incarnation ~= owner then
    answers[part] = 'f' .. head
  elseif tonumber(last) == number then
    answers[part] = 'c' .. answer
  elseif tonumber(last) + 1 ~= number then
    answers[part] = 'f' .. head
  else
    local ok, first = pcall(apply, prefix, at, at + count)
    if ok then
      call('SET', key, owner .. ' ' .. ARGV[at - 2] .. ' ' .. first)
      answers[part] = 'c' .. first
    else
      local reason = type(first) == 'table' and first.err or tostring(first)
      call('SET', key, 'damaged ' .. reason .. ' (' .. head .. ')')
      answers[part] = 'd' .. reason
    end
  end
  at = at + count
end
return answers
