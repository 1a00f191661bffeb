-- A driver's numbered write: messages, attachments and events, in order.
-- KEYS: none
-- ARGV: namespace, writer, number, session in ms, last reply read (or ''), inbox limit,
--       then for each: 'm', shard, invocation, teller, message  |  'c', shard, invocation, message (told: the writer)
--                      'n', shard, invocation, teller, digest, message (must be new, or the same by its digest)
--                      'a', shard, invocation  |  'e', shard, invocation, `kind:index`, payload
-- Returns: false if refused (unknown writer, or not the next number); else it was applied, now or before, but for those
--          listed, by their place from 0: `o3` found the stream full, the invocation of `u4` is not known, that of `k5`
--          is, and had to be new, `l6` asks for an outcome after too many bytes of others: to be asked again
-- Promise 1: an applied message is in its inbox. Promise 2: in the order sent, each once.
local writer, number, session = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key, replies_key = ns .. ':writer:' .. writer, ns .. ':replies:' .. writer
local entry = call('GET', key)
if not entry or call('EXISTS', replies_key) == 0 then return false end

local missed = {}
for word in string.gmatch(entry, '%S+') do missed[#missed + 1] = word end
local last = tonumber(table.remove(missed, 1))
if number ~= last and number ~= last + 1 then return false end
call('PEXPIRE', replies_key, session)
if number == last then
  call('PEXPIRE', key, session)
  return missed
end

-- Everything is read before anything is written, at once for all shards: should a key be foreign, nothing is done.
local limit, me, shards, order, room = tonumber(ARGV[6]), 'w:' .. writer, {}, {}, {}
local lengths, i, n = {m = 5, n = 6, c = 4, a = 3, e = 5}, 7, #ARGV
while i <= n do
  local kind, name = ARGV[i], ARGV[i + 1]
  if kind == 'm' or kind == 'c' or kind == 'n' then
    local shard = shards[name]
    if not shard then
      local prefix = ns .. ':' .. name
      shard = {ids = prefix .. ':ids', inbox = prefix .. ':inbox', digests = prefix .. ':digests', kept = {}, asked = {}}
      shards[name] = shard
      order[#order + 1] = shard
    end
    shard.asked[#shard.asked + 1] = ARGV[i + 2]
    if kind == 'n' and ARGV[i + 4] ~= '' then
      shard.kept[ARGV[i + 2]] = call('HGET', shard.digests, ARGV[i + 2])
    end
  elseif kind == 'e' and not room[name] then
    local prefix = ns .. ':' .. name
    call('HLEN', prefix .. ':ids')
    room[name] = limit - call('XLEN', prefix .. ':events')
  end
  i = i + lengths[kind]
end
for _, shard in ipairs(order) do
  local asked, known = shard.asked, {}
  shard.known, shard.added, shard.length = known, {}, call('XLEN', shard.inbox)
  for first = 1, #asked, 1000 do
    for k, entry in ipairs(call('HMGET', shard.ids, unpack(asked, first, math.min(first + 999, #asked)))) do
      if entry then known[asked[first + k - 1]] = entry end
    end
  end
end

local function note(shard)
  if #shard.added == 0 then return end
  call('HSET', shard.ids, unpack(shard.added))
  shard.added = {}
end

local TOLD_MAX = 4000000 -- as of a read: outcomes may be large, and many are asked for at once
local place = 0
missed, i = {}, 7
while i <= n do
  local kind, invocation, shard = ARGV[i], ARGV[i + 2], shards[ARGV[i + 1]]
  local teller = (kind == 'm' or kind == 'n') and ARGV[i + 3] or me
  local following = i + lengths[kind]
  if kind == 'e' then
    if shard then note(shard) end
    local name, what, index = ARGV[i + 1], string.match(ARGV[i + 3], '^(%a):(%d+)$')
    local found = room[name] > 0 and bring(ns .. ':' .. name, invocation, what, index, ARGV[i + 4])
    if room[name] <= 0 then
      missed[#missed + 1] = 'o' .. place
    elseif not found then
      missed[#missed + 1] = 'u' .. place
    elseif is_open(found) then
      room[name] = room[name] - 1
    end
  elseif kind == 'n' and shard.known[invocation] and not is_same(shard.kept[invocation], ARGV[i + 4]) then
    missed[#missed + 1] = 'k' .. place
  elseif (kind == 'a' or shard.known[invocation]) and told >= TOLD_MAX then
    missed[#missed + 1] = 'l' .. place
  elseif kind == 'a' or shard.known[invocation] then
    if shard then note(shard) end
    if not attach(ns .. ':' .. ARGV[i + 1], invocation, teller) then
      tell(me, invocation, 'U', 'r')
    end
  elseif shard.length >= limit then
    missed[#missed + 1] = 'o' .. place
  else
    local id, added = call('XADD', shard.inbox, '*', 'm', ARGV[following - 1]), shard.added
    local k = #added
    added[k + 1] = invocation
    added[k + 2] = teller == '' and 'i' .. id or 'i' .. id .. ' ' .. teller
    if k >= 998 then note(shard) end
    shard.known[invocation] = true
    if kind == 'n' and ARGV[i + 4] ~= '' then
      shard.kept[invocation] = string.sub(ARGV[i + 4], 2)
      call('HSET', shard.digests, invocation, shard.kept[invocation])
    end
    shard.length = shard.length + 1
  end
  i, place = following, place + 1
end
for _, shard in ipairs(order) do note(shard) end
send_replies(call)
if ARGV[5] ~= '' then call('XTRIM', replies_key, 'MINID', ARGV[5]) end
-- The number comes last: should anything above fail, the write is repeated, and finds its messages known.
local answer = #missed > 0 and ' ' .. table.concat(missed, ' ') or ''
call('SET', key, ARGV[3] .. answer, 'PX', session)
return missed
