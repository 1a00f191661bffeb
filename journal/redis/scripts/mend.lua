-- Makes `ids` of a torn shard anew, from the data that is there, and ends the invocations in it that are gone.
-- KEYS: none
-- ARGV: namespace, shard, owner (`epoch incarnation`), outcome of those that are gone, whether this is the last call
--       (0/1), then for each open invocation that is there: its id, its entry (or nothing, if it has one), and the timer
--       to set again where timers are gone: nothing, `w` (its owner does it), or due time and member
-- Returns: the ids of those that are gone (with the last call; before it, none), or false if the shard is another host's
-- Promise 8: deleted data holds up no caller. Fenced, not numbered: once more finds nothing more to mend.
local prefix = ns .. ':' .. ARGV[2]
local head = call('GET', prefix .. ':head') or ''
if string.sub(head, 1, #ARGV[3] + 1) ~= ARGV[3] .. ' ' then return false end
local ids, done = prefix .. ':ids', prefix .. ':done'
local untimed = call('HGET', ids, '') == 'untimed'
for i = 6, #ARGV, 3 do
  if ARGV[i + 1] ~= '' then call('HSETNX', ids, ARGV[i], ARGV[i + 1]) end
  if untimed and ARGV[i + 2] == 'w' then
    bring(prefix, ARGV[i], 'v', '0', '')
  elseif untimed and ARGV[i + 2] ~= '' then
    call('ZADD', prefix .. ':timers', 'NX', string.match(ARGV[i + 2], '^(%d+) (.+)$'))
  end
end
if ARGV[5] == '0' then return {} end

local after = '-'
repeat
  local page = call('XRANGE', done, after, '+', 'COUNT', 100)
  for _, entry in ipairs(page) do
    after = '(' .. entry[1]
    if entry[2][4] ~= '' then call('HSETNX', ids, entry[2][2], 'd' .. entry[1]) end
  end
until #page < 100
for _, invocation in ipairs(call('HKEYS', prefix .. ':outcomes')) do call('HSETNX', ids, invocation, 'o') end

local entries, lost, holders = call('HGETALL', ids), {}, {}
for k = 1, #entries, 2 do
  local invocation, place, tellers = entries[k], place_of(entries[k + 1])
  local first = string.sub(place, 1, 1)
  local is_there = first ~= 'i' and first ~= 'a'
  if first == 'i' then
    is_there = #call('XRANGE', prefix .. ':inbox', string.sub(place, 2), string.sub(place, 2)) > 0
  elseif first == 'a' then
    is_there = call('HEXISTS', prefix .. ':asleep:' .. invocation, 'm') == 1
  end
  if not is_there then
    lost[#lost + 1] = invocation
    holders[invocation] = true
    call('HDEL', ids, invocation)
    call('DEL', prefix .. ':asleep:' .. invocation)
    for teller in string.gmatch(tellers, '%S+') do tell(teller, invocation, ARGV[4], 'r') end
  end
end
local held = call('HGETALL', prefix .. ':held')
for k = 1, #held, 2 do
  if holders[held[k + 1]] or not call('HGET', ids, held[k + 1]) then call('HDEL', prefix .. ':held', held[k]) end
end
call('HSET', ids, '', '-')
send_replies(call)
return lost
