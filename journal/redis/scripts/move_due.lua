-- Moves due timers into `events`, and delayed messages that are due into `inbox`, in the order of their due times. Those
-- of objects (`e`) and of their fields (`f`, after a zero byte) name no invocation.
-- KEYS: none
-- ARGV: namespace, shard, owner (`epoch incarnation`), most to move
-- Returns: {moved, next due time in ms (0: none)}, or {-1, 0} if the shard is another host's
-- Promise 2: a delayed message counts as sent when it is due. Fenced, not numbered: once more moves only what is there.
local prefix = ARGV[1] .. ':' .. ARGV[2]
local head = redis.call('GET', prefix .. ':head') or ''
if string.sub(head, 1, #ARGV[3] + 1) ~= ARGV[3] .. ' ' then return {-1, 0} end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = redis.call('ZRANGEBYSCORE', prefix .. ':timers', '-inf', now, 'LIMIT', 0, ARGV[4])
for _, member in ipairs(due) do
  local invocation, what = string.match(member, '^[^:]*:(.+):([^:]*)$')
  local is_of_state = what == 'e' or what == 'f'
  local entry = not is_of_state and redis.call('HGET', prefix .. ':ids', invocation)
  local first = entry and string.sub(entry, 1, 1)
  if is_of_state then
    local target, field = invocation, ''
    if what == 'f' then target, field = string.match(invocation, '^(.*)%z(.*)$') end
    redis.call('XADD', prefix .. ':events', '*', 'i', target, 'k', 'e', 'x', '0', 'd', field)
  elseif what == 'd' and first == 'a' then
    local key = prefix .. ':asleep:' .. invocation
    if redis.call('HLEN', key) == 2 then -- message and id: it has not begun since
      local id = redis.call('XADD', prefix .. ':inbox', '*', 'm', redis.call('HGET', key, 'm'))
      redis.call('DEL', key)
      redis.call('HSET', prefix .. ':ids', invocation, 'i' .. id .. string.match(entry, '^%S+(.*)$'))
    end
  elseif what ~= 'd' and (first == 'a' or first == 'i') then
    local kind, index = 't', what
    if what == 'a' then kind, index = 'a', '0' end
    redis.call('XADD', prefix .. ':events', '*', 'i', invocation, 'k', kind, 'x', index, 'd', '')
  end
  redis.call('ZREM', prefix .. ':timers', member)
end
local following = redis.call('ZRANGE', prefix .. ':timers', 0, 0, 'WITHSCORES')
if following[1] == '' then following = {} end -- the mark that keeps it from being empty
return {#due, following[2] and tonumber(following[2]) or 0}
