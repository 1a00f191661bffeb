-- A driver's numbered write: messages and attachments, in order.
-- KEYS: none
-- ARGV: namespace, writer, number, session in ms, last reply read (or ''), inbox limit,
--       then for each: 'm', shard, invocation, teller, message  |  'a', shard, invocation
-- Returns: false if refused (unknown writer, or not the next number); else it was applied, now or before, but for the
--          messages of the invocations listed, whose inbox is full
-- Promise 1: what is applied is in its inbox. Promise 2: in the order sent, each once.
local writer, number, session = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key, replies_key = ns .. ':writer:' .. writer, ns .. ':replies:' .. writer
local entry = call('GET', key)
if not entry or call('EXISTS', replies_key) == 0 then return false end

local overloaded = {}
for word in string.gmatch(entry, '%S+') do overloaded[#overloaded + 1] = word end
local last = tonumber(table.remove(overloaded, 1))
if number ~= last and number ~= last + 1 then return false end
call('PEXPIRE', replies_key, session)
if number == last then
  call('PEXPIRE', key, session)
  return overloaded
end

-- What is known of each shard is asked before anything is written, at once: should a key be foreign, nothing is done.
local limit, me, shards, order = tonumber(ARGV[6]), 'w:' .. writer, {}, {}
local i, n = 7, #ARGV
while i <= n do
  if ARGV[i] == 'm' then
    local shard = shards[ARGV[i + 1]]
    if not shard then
      local prefix = ns .. ':' .. ARGV[i + 1]
      shard = {ids = prefix .. ':ids', inbox = prefix .. ':inbox', asked = {}, known = {}, added = {}}
      shards[ARGV[i + 1]] = shard
      order[#order + 1] = shard
    end
    shard.asked[#shard.asked + 1] = ARGV[i + 2]
  end
  i = i + (ARGV[i] == 'm' and 5 or 3)
end
for _, shard in ipairs(order) do
  shard.length = call('XLEN', shard.inbox)
  for first = 1, #shard.asked, 1000 do
    local last = math.min(first + 999, #shard.asked)
    for k, entry in ipairs(call('HMGET', shard.ids, unpack(shard.asked, first, last))) do
      shard.known[shard.asked[first + k - 1]] = entry
    end
  end
end

local function note(shard)
  if #shard.added > 0 then call('HSET', shard.ids, unpack(shard.added)) end
  shard.added = {}
end

overloaded, i = {}, 7
while i <= n do
  local invocation, shard = ARGV[i + 2], shards[ARGV[i + 1]]
  if ARGV[i] == 'm' and not shard.known[invocation] then
    if shard.length >= limit then
      overloaded[#overloaded + 1] = invocation
    else
      local teller = ARGV[i + 3]
      local place = 'i' .. call('XADD', shard.inbox, '*', 'm', ARGV[i + 4])
      local added = shard.added
      added[#added + 1] = invocation
      added[#added + 1] = teller == '' and place or place .. ' ' .. teller
      if #added >= 1000 then note(shard) end
      shard.known[invocation] = place
      shard.length = shard.length + 1
    end
  else
    if shard then note(shard) end
    local teller = ARGV[i] == 'm' and ARGV[i + 3] or me
    if not attach(ns .. ':' .. ARGV[i + 1], invocation, teller) then
      tell(me, invocation, 'U', 'r')
    end
  end
  i = i + (ARGV[i] == 'm' and 5 or 3)
end
for _, shard in ipairs(order) do note(shard) end
send_replies(call)
if ARGV[5] ~= '' then call('XTRIM', replies_key, 'MINID', ARGV[5]) end
-- The number comes last: should anything above fail, the write is repeated, and finds what it has done known.
local answer = #overloaded > 0 and ' ' .. table.concat(overloaded, ' ') or ''
call('SET', key, ARGV[3] .. answer, 'PX', session)
return overloaded
