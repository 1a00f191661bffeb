-- A driver's numbered write: messages and attachments, in order.
-- KEYS: none
-- ARGV: namespace, writer, number, session in ms, last reply read (or ''), inbox limit,
--       then for each: 'm', shard, invocation, teller, message  |  'a', shard, invocation
-- Returns: 1 applied (now or before), 0 refused (unknown writer, or not the next number)
-- Promise 1: what is answered with 1 is in its inbox. Promise 2: in the order sent, each once.
local ns, writer, number, session = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key, replies_key = ns .. ':writer:' .. writer, ns .. ':replies:' .. writer
local last = tonumber(call('GET', key) or nil)
if not last or (number ~= last and number ~= last + 1) then return 0 end
call('PEXPIRE', replies_key, session)
if number == last then
  call('PEXPIRE', key, session)
  return 1
end
call('SET', key, number, 'PX', session)
local limit, me, replies = tonumber(ARGV[6]), 'w:' .. writer, {}
local i, n = 7, #ARGV
while i <= n do
  local prefix = ns .. ':' .. ARGV[i + 1]
  if ARGV[i] == 'm' then
    accept(ns, replies, prefix, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], limit, 'O')
    i = i + 5
  else
    if not attach(ns, replies, prefix, ARGV[i + 2], me) then tell(ns, replies, me, ARGV[i + 2], 'U', 'r') end
    i = i + 3
  end
end
send_replies(ns, replies)
if ARGV[5] ~= '' then call('XTRIM', replies_key, 'MINID', ARGV[5]) end
return 1
