-- Shared functions, placed before `submit` and `commit`: outcomes to the tellers of an invocation, and events to it.
-- KEYS: none (names are built from the namespace; one namespace lives in one primary)
-- ARGV: none of its own
-- Returns: nothing of its own
-- Promise 3: replies, messages and events appear with what caused them. A message of a known invocation becomes an
-- attachment, an event of a finished one nothing.
local call = redis.call
local ARGV = ARGV
local ns = ARGV[1]
for _, command in ipairs({'DEL', 'HDEL', 'HSET', 'MSET', 'PEXPIRE', 'SET', 'XADD', 'XDEL', 'XTRIM', 'ZADD', 'ZREM'}) do
  -- Asked first: a user who lost a right must not leave half a write behind.
  if not redis.acl_check_cmd(command, ns .. ':0:ids', '1', '1', '1') then
    return redis.error_reply('NOPERM this user may not run ' .. command .. ' on the keys of ' .. ns)
  end
end
local replies, part = {}, 0 -- replies to each driver, by teller; the part of a commit that is being applied
local told = 0 -- bytes of the replies to drivers

-- where|whom: `i<inbox id>`, `a<inbox id>` (asleep), `d<done id>`, `o` (outcomes), then a space before each teller
local function place_of(entry)
  local space = string.find(entry, ' ', 1, true)
  if not space then return entry, '' end
  return string.sub(entry, 1, space - 1), string.sub(entry, space)
end

local function is_open(entry)
  local first = string.byte(entry)
  return first == 105 or first == 97 -- i, a
end

-- Brings an event to an invocation, if it is open; false if it is not known.
local function bring(prefix, invocation, kind, index, payload)
  local entry = call('HGET', prefix .. ':ids', invocation)
  if entry and is_open(entry) then
    call('XADD', prefix .. ':events', '*', 'i', invocation, 'k', kind, 'x', index, 'd', payload)
  end
  return entry
end

local function tell(teller, invocation, payload, kind)
  if string.byte(teller) == 119 then -- w:<writer>
    local list = replies[teller]
    if not list then list = {}; replies[teller] = list end
    if list.part ~= part then list.part, list.kept = part, #list end
    list[#list + 1] = invocation
    list[#list + 1] = payload
    told = told + #payload
    return
  end
  local waiting, index = string.match(teller, '^i:(.+):(%d+)$')
  bring(ns .. ':' .. string.match(waiting, '%-(%d+)$'), waiting, kind, index, payload)
end

local function outcome_of(prefix, place, invocation)
  if string.byte(place) == 111 then return call('HGET', prefix .. ':outcomes', invocation) end -- o
  local id = string.sub(place, 2)
  local found = call('XRANGE', prefix .. ':done', id, id)
  return found[1] and found[1][2][4]
end

-- Whether a request is the one of a known invocation: `=<digest>` if that is kept, `?<digest>` also if none is.
local function is_same(kept, digest)
  if digest == '' then return false end
  if not kept then return string.byte(digest) == 63 end -- ?
  return kept == string.sub(digest, 2)
end

-- Attaches to a known invocation; false if it is not known.
local function attach(prefix, invocation, teller)
  local entry = call('HGET', prefix .. ':ids', invocation)
  if not entry then return false end
  if teller == '' then return true end
  local place, tellers = place_of(entry)
  if is_open(place) then
    if not string.find(tellers .. ' ', ' ' .. teller .. ' ', 1, true) then
      call('HSET', prefix .. ':ids', invocation, entry .. ' ' .. teller)
    end
  else
    tell(teller, invocation, outcome_of(prefix, place, invocation) or 'U', 'r')
  end
  return true
end

-- Takes back the replies of the current part.
local function untell()
  for _, list in pairs(replies) do
    for k = #list, list.part == part and list.kept + 1 or #list + 1, -1 do list[k] = nil end
  end
end

local function send_replies(add)
  for teller, list in pairs(replies) do
    local key = ns .. ':replies:' .. string.sub(teller, 3)
    for first = 1, #list, 1000 do
      add('XADD', key, 'NOMKSTREAM', '*', unpack(list, first, math.min(first + 999, #list)))
    end
  end
end
