-- A host's numbered, fenced write: the progress of many invocations of several shards. Each shard's part stands alone.
-- KEYS: none
-- ARGV: namespace, limit of an inbox for calls, most entries of `done`, retention in ms, refusal of a full inbox, parts;
--       then for each part: shard, owner (`epoch incarnation`), number, count of arguments that
--       follow, and for each progress: invocation, target, inbox id, flags, and the section of each flag that is set,
--       in this order:
--         1 record | 2 count, event ids | 4 field, value | 4096 count, field, value, … | 8 count, fields
--         16 count, due, member, …
--         32 count, members
--         16384 field, or nothing for all of the target: it has expired; messages leave only if it is cleared
--         64 count of messages, then shard, invocation, teller, message; the teller of an
--         event is `e:<kind>:<index>`, that of an attachment `a:<teller>`, that of a message whose invocation must be
--         new `n<teller>`, a line feed and a refusal
--         128 outcome, summary, and with 8192 keep in ms | 512 notice
--         256 holds (0/1, 2: goes on after a pause), reason of a pause
--         1024 count, ids in `journal` written before this part (before 128 or 256 are done) | 2048 asleep (no section)
-- Returns: for each part: `c<first journal id>` (then, after spaces, known invocations of sends that wanted them new),
--          `f<head>` (refused) or `d<reason>` (damaged). After the `c` comes `!` if data that the part names was not
--          there: the store has lost it. The rest of the part was applied, and the shard is marked as torn: its owner is
--          to mend it.
-- Promises 3 and 6: a part appears as a whole, once, and only for the shard's owner.
local inbox_limit, done_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local retention, refusal = tonumber(ARGV[4]), ARGV[5]
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local band = bit.band
local forgets, are_kept = {}, nil
local lost = false -- whether the part that is being applied names data that is gone
local known = '' -- known invocations of sends of the part that wanted them new, each after a space

-- Ids of one commit follow each other, also where the clock goes on while a script runs (Redis before 7.2).
local function record(key, last, invocation, data)
  local id = '*'
  if last then
    local ms, sequence = string.match(last, '^(%d+)-(%d+)$')
    id = ms .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
  end
  return call('XADD', key, id, 'i', invocation, 'd', data)
end

-- Puts a message into its inbox, or attaches to a known invocation; false if there is no room. No limit for sends:
-- nobody could be told.
local function accept(prefix, invocation, teller, data, limit)
  if attach(prefix, invocation, teller) then return true end
  if limit and call('XLEN', prefix .. ':inbox') >= limit then return false end
  local id = call('XADD', prefix .. ':inbox', '*', 'm', data)
  call('HSET', prefix .. ':ids', invocation, teller == '' and ('i' .. id) or ('i' .. id .. ' ' .. teller))
  return true
end

local function send(prefix, invocation, teller, data)
  local kind = string.byte(teller)
  if kind == 101 then -- e:<kind>:<index>
    local what, index = string.match(teller, '^e:(%a):(%d+)$')
    bring(prefix, invocation, what, index, data)
    return
  elseif kind == 97 then -- a:<whom to tell>, and the outcome if the invocation is not known
    local whom = string.sub(teller, 3)
    if not attach(prefix, invocation, whom) then tell(whom, invocation, data, 'r') end
    return
  elseif kind == 110 then -- n<teller>\n<digest>\n<refusal>
    local caller, digest, refused = string.match(teller, '^n([^\n]*)\n([^\n]*)\n(.*)$')
    local is_known, digests = call('HEXISTS', prefix .. ':ids', invocation) == 1, prefix .. ':digests'
    local is_its = digest ~= '' and is_same(call('HGET', digests, invocation), digest)
    if is_known and not is_its then
      if caller ~= '' then
        tell(caller, invocation, refused, 'r')
      else
        known = known .. ' ' .. invocation
      end
      return
    end
    if digest ~= '' and not is_known then call('HSET', digests, invocation, string.sub(digest, 2)) end
    teller = caller
  end
  if not accept(prefix, invocation, teller, data, teller ~= '' and inbox_limit) then
    tell(teller, invocation, refusal, 'r')
  end
end

-- Notes that data is gone, and returns an empty entry.
local function gone()
  lost = true
  return ''
end

local function lay_to_sleep(names, invocation, target, inbox_id, asleep, how, paused, journal)
  local key = names.asleep .. ':' .. invocation
  if not asleep then
    local found = call('XRANGE', names.inbox, inbox_id, inbox_id)
    if not found[1] then gone() return end
    call('HSET', key, 'm', found[1][2][2], 'id', inbox_id)
    call('XDEL', names.inbox, inbox_id)
    local _, tellers = place_of(call('HGET', names.ids, invocation) or gone())
    call('HSET', names.ids, invocation, 'a' .. inbox_id .. tellers)
    if how == '1' then call('HSET', names.held, target, invocation) end
  elseif call('EXISTS', key) == 0 then
    gone()
    return
  end
  for _, id in ipairs(journal) do
    local found = call('XRANGE', names.journal, id, id)
    if found[1] then
      call('HSET', key, 'j' .. id, found[1][2][4])
      call('XDEL', names.journal, id)
    else
      gone()
    end
  end
  if paused ~= '' or how == '2' then
    call('HSET', key, 'paused', paused) -- empty: it is open
  elseif asleep then
    call('HDEL', key, 'paused')
  end
end

-- Clears expired state, unless it was written since its timer came due: then the timer is there again, and false.
local function expire(names, target, field)
  local state, timers = names.state .. ':' .. target, names.timers
  local object, stem = 'ttl:' .. target .. ':e', 'ttl:' .. target .. '\0'
  if call('ZSCORE', timers, field == '' and object or stem .. field .. ':f') then return false end
  if field ~= '' then
    call('HDEL', state, field)
    if call('EXISTS', state) == 0 then call('ZREM', timers, object) end
    return true
  end
  local members = call('HKEYS', state)
  for k, name in ipairs(members) do members[k] = stem .. name .. ':f' end
  sliced('ZREM', timers, 1, #members, members)
  call('DEL', state)
  return true
end

local function tell_all(invocation, entry, outcome)
  local space = string.find(entry, ' ', 1, true)
  while space do
    local following = string.find(entry, ' ', space + 1, true)
    tell(string.sub(entry, space + 1, following and following - 1), invocation, outcome, 'r')
    space = following
  end
end

-- Ends an invocation that has slept or whose outcome is kept.
local function finish(names, invocation, target, inbox_id, asleep, outcome, summary, keep, journal)
  tell_all(invocation, call('HGET', names.ids, invocation) or gone(), outcome)
  if asleep then
    call('DEL', names.asleep .. ':' .. invocation)
    if call('HGET', names.held, target) == invocation then call('HDEL', names.held, target) end
  else
    call('XDEL', names.inbox, inbox_id)
  end
  sliced('XDEL', names.journal, 1, #journal, journal)
  if keep > 0 then
    call('HSET', names.outcomes, invocation, outcome)
    call('ZADD', names.forget, now + keep, invocation)
    call('XADD', names.done, '*', 'i', invocation, 'o', '', 's', summary)
    call('HSET', names.ids, invocation, 'o')
  else
    local id = call('XADD', names.done, '*', 'i', invocation, 'o', outcome, 's', summary)
    call('HSET', names.ids, invocation, 'd' .. id)
  end
end

-- Invocations that `finish_all` has to end: lists, used again and again, of which the first `n` entries hold.
local ends = {n = 0, invocations = {}, outcomes = {}, summaries = {}, inbox_ids = {}, journal = nil}

-- Ends all others that stand one after the other in a part, with one command where `finish` takes one for each.
local function finish_all(names)
  local n, invocations, outcomes, ended, first = ends.n, ends.invocations, ends.outcomes, {}, 1
  if n == 0 then return end
  for k, entry in ipairs(call('HMGET', names.ids, unpack(invocations, 1, n))) do
    local invocation, outcome = invocations[k], outcomes[k]
    entry = entry or gone()
    if first < k and string.find(entry, ' i:', 1, true) then -- a waiting invocation that has ended before is not told
      call('HSET', names.ids, unpack(ended, 2 * first - 1))
      first = k
    end
    tell_all(invocation, entry, outcome)
    ended[2 * k - 1] = invocation
    ended[2 * k] = 'd' .. call('XADD', names.done, '*', 'i', invocation, 'o', outcome, 's', ends.summaries[k])
  end
  call('HSET', names.ids, unpack(ended, 2 * first - 1))
  call('XDEL', names.inbox, unpack(ends.inbox_ids, 1, n))
  if ends.journal then sliced('XDEL', names.journal, 1, #ends.journal, ends.journal) end
  ends.n, ends.journal = 0, nil
end

-- Whether some shard of this commit had outcomes in `forget` when first asked: later ones are not due yet.
local function some_kept()
  for first = 1, are_kept == nil and #forgets or 0, 1000 do
    are_kept = call('EXISTS', unpack(forgets, first, math.min(first + 999, #forgets))) > 0 or are_kept or false
  end
  return are_kept
end

-- Forgets at most two finished invocations for each one added.
local function trim(names, added)
  forget_done(names, 2 * added, call('XLEN', names.done) - done_max, math.max(now - retention, 0))
  if some_kept() then forget_kept(names, 2 * added, now) end
end

local function apply(prefix, at, stop)
  local names, first, last, finished, written = setmetatable({prefix = prefix}, naming), '', nil, 0, nil
  ends.n, ends.journal, known, lost = 0, nil, '', false
  while at < stop do
    local invocation, target, inbox_id, flags = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local asleep, journal = band(flags, 2048) ~= 0, nil
    at = at + 4
    if ends.n == 500 or band(flags, 64 + 256 + 512) ~= 0 then -- these sections read `ids`, or change it
      finish_all(names)
    end
    if band(flags, 1) ~= 0 then
      local added = record(names.journal, last, invocation, ARGV[at])
      if first == '' then first = added end
      last = added
      written = written or {}
      written[invocation] = written[invocation] or {}
      table.insert(written[invocation], added)
      at = at + 1
    end
    if band(flags, 2) ~= 0 then
      local n = tonumber(ARGV[at]); sliced('XDEL', names.events, at + 1, n); at = at + 1 + n
    end
    if band(flags, 4) ~= 0 then
      call('HSET', names.state .. ':' .. target, ARGV[at], ARGV[at + 1]); at = at + 2
    end
    if band(flags, 4096 + 8 + 16 + 32 + 64 + 512 + 1024 + 16384) ~= 0 then -- asked at once: most have none of them
      if band(flags, 4096) ~= 0 then
        local n = tonumber(ARGV[at]); sliced('HSET', names.state .. ':' .. target, at + 1, n); at = at + 1 + n
      end
      if band(flags, 8) ~= 0 then
        local n = tonumber(ARGV[at]); sliced('HDEL', names.state .. ':' .. target, at + 1, n); at = at + 1 + n
      end
      if band(flags, 16) ~= 0 then
        local n = tonumber(ARGV[at]); sliced('ZADD', names.timers, at + 1, n); at = at + 1 + n
      end
      if band(flags, 32) ~= 0 then
        local n = tonumber(ARGV[at]); sliced('ZREM', names.timers, at + 1, n); at = at + 1 + n
      end
      local leaves = true
      if band(flags, 16384) ~= 0 then
        leaves = expire(names, target, ARGV[at]); at = at + 1
      end
      if band(flags, 64) ~= 0 then
        local following = at + 1 + 4 * tonumber(ARGV[at])
        for k = at + 1, leaves and following - 1 or at, 4 do
          send(ns .. ':' .. ARGV[k], ARGV[k + 1], ARGV[k + 2], ARGV[k + 3])
        end
        at = following
      end
      if band(flags, 512) ~= 0 then
        local place = call('HGET', names.ids, invocation)
        local tellers = place and is_open(place) and select(2, place_of(place)) or ''
        for teller in string.gmatch(tellers, '%S+') do
          tell(teller, invocation, string.byte(teller) == 119 and 'N' .. ARGV[at] or ARGV[at], 'n')
        end
        at = at + 1
      end
      if band(flags, 1024) ~= 0 then
        local n = tonumber(ARGV[at])
        journal = {}
        for k = 1, n do journal[k] = ARGV[at + k] end
        at = at + 1 + n
      end
    end
    if written and written[invocation] and band(flags, 128 + 256) ~= 0 then
      journal = journal or {}
      for _, id in ipairs(written[invocation]) do journal[#journal + 1] = id end
      written[invocation] = nil
    end
    if band(flags, 128) ~= 0 then
      local outcome, summary, keep = ARGV[at], ARGV[at + 1], 0
      at = at + 2
      if flags >= 8192 then keep, at = tonumber(ARGV[at]), at + 1 end
      if asleep or keep > 0 then
        finish_all(names)
        finish(names, invocation, target, inbox_id, asleep, outcome, summary, keep, journal or {})
      else
        local k = ends.n + 1
        ends.n, ends.invocations[k], ends.outcomes[k], ends.summaries[k] = k, invocation, outcome, summary
        ends.inbox_ids[k] = inbox_id
        if journal and ends.journal then
          for _, id in ipairs(journal) do ends.journal[#ends.journal + 1] = id end
        else
          ends.journal = journal or ends.journal
        end
      end
      finished = finished + 1
    elseif band(flags, 256) ~= 0 then
      lay_to_sleep(names, invocation, target, inbox_id, asleep, ARGV[at], ARGV[at + 1], journal or {})
      at = at + 2
    end
  end
  finish_all(names)
  if finished > 0 then trim(names, finished) end
  if lost then call('HSET', names.ids, '', 'torn') end
  return (lost and '!' or '') .. first .. known
end

local answers, prefixes, keys, heads, changed, at = {}, {}, {}, {}, {}, 7
for k = 1, tonumber(ARGV[6]) do
  local prefix = ns .. ':' .. ARGV[at]
  prefixes[k], keys[k], forgets[k] = prefix, prefix .. ':head', prefix .. ':forget'
  at = at + 4 + tonumber(ARGV[at + 3])
end
for first = 1, #keys, 1000 do
  local last = math.min(first + 999, #keys)
  for k, head in ipairs(call('MGET', unpack(keys, first, last))) do heads[keys[first + k - 1]] = head or '' end
end
at = 7
for k, key in ipairs(keys) do
  part = k
  local owner, number, count = ARGV[at + 1] .. ' ', tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local head = heads[key]
  local last, answer = nil, nil
  if string.sub(head, 1, #owner) == owner then last, answer = string.match(head, '^(%d+) ?(.*)$', #owner + 1) end
  at = at + 4
  if not last then
    answers[part] = 'f' .. head
  elseif tonumber(last) == number then
    answers[part] = 'c' .. answer
  elseif tonumber(last) + 1 ~= number then
    answers[part] = 'f' .. head
  else
    local ok, first = pcall(apply, prefixes[k], at, at + count)
    if ok then
      heads[key] = owner .. ARGV[at - 2] .. ' ' .. first
      answers[part] = 'c' .. first
    else
      untell()
      local reason = type(first) == 'table' and first.err or tostring(first)
      heads[key] = 'damaged ' .. reason .. ' (' .. head .. ')'
      answers[part] = 'd' .. reason
    end
    changed[#changed + 1] = key
    changed[#changed + 1] = heads[key]
  end
  at = at + count
end
for first = 1, #changed, 1000 do call('MSET', unpack(changed, first, math.min(first + 999, #changed))) end
-- At once for all parts. It fails where a driver's key is foreign; that driver hears nothing, and attaches in the end:
-- the commits that it waits for have happened all the same.
send_replies(redis.pcall)
return answers
