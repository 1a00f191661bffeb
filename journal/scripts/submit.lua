-- A driver's numbered write: messages and attachments, in order.
-- KEYS: none
-- ARGV: namespace, writer, number, session in ms, last reply read (or ''), inbox limit,
--       then for each: 'm', shard, invocation, teller, message  |  'a', shard, invocation
-- Returns: false if refused (unknown writer, or not the next number); else it was applied, now or before, but for the
--          messages of the invocations listed, whose inbox is full
-- Promise 1: what is applied is in its inbox. Promise 2: in the order sent, each once.
local ns, writer, number, session = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
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

overloaded = {}
local limit, me, replies = tonumber(ARGV[6]), 'w:' .. writer, {}
local i, n = 7, #ARGV
while i <= n do
  local prefix, invocation = ns .. ':' .. ARGV[i + 1], ARGV[i + 2]
  if ARGV[i] == 'm' then
    if not accept(ns, replies, prefix, invocation, ARGV[i + 3], ARGV[i + 4], limit) then
      overloaded[#overloaded + 1] = invocation
    end
    i = i + 5
  else
    if not attach(ns, replies, prefix, invocation, me) then tell(ns, replies, me, invocation, 'U', 'r') end
    i = i + 3
  end
end
send_replies(ns, replies)
if ARGV[5] ~= '' then call('XTRIM', replies_key, 'MINID', ARGV[5]) end
-- The number comes last: should anything above fail, the write is repeated, and finds what it has done known.
local answer = #overloaded > 0 and ' ' .. table.concat(overloaded, ' ') or ''
call('SET', key, ARGV[3] .. answer, 'PX', session)
return overloaded
