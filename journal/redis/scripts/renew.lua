-- Renews the leases of a host, says that it is there, and compares the ids that it has read with the ends of the streams.
-- KEYS: none
-- ARGV: namespace, incarnation, about the host, beat, whether to look into streams (0/1), then for each: shard, epoch,
--       the last ids that were read of `inbox` and of `events`
-- Returns: for each, the number of the shard's last commit, -1 if it is no longer this host's, or -2 if the store lacks
--          something that it had: the head, a stream or what was in it, the marks in `ids` and `timers`
-- Promise 6: only the owner by head renews. Fenced, not numbered: once more does no harm.
local ns, incarnation, looks = ARGV[1], ARGV[2], ARGV[5] == '1'
redis.call('HSET', ns .. ':hosts', incarnation, ARGV[4] .. ' ' .. ARGV[3])

local function order_of(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(sequence)
end

-- Whether a stream is gone, or ends before the last id that was read of it.
local function is_gone(key, read)
  if read == '0-0' then return false end
  if redis.call('EXISTS', key) == 0 then return true end
  if not looks then return false end
  local found = redis.call('XINFO', 'STREAM', key)
  for k = 1, #found, 2 do
    if found[k] == 'last-generated-id' then
      local ms, sequence = order_of(found[k + 1])
      local read_ms, read_sequence = order_of(read)
      return ms < read_ms or ms == read_ms and sequence < read_sequence
    end
  end
end

local answers = {}
for i = 6, #ARGV, 4 do
  local prefix, epoch, number = ns .. ':' .. ARGV[i], ARGV[i + 1], -1
  local owner, head = epoch .. ' ' .. incarnation, redis.call('GET', prefix .. ':head') or '0 '
  if string.sub(head, 1, #owner + 1) == owner .. ' ' then
    number = tonumber(string.match(head, '^%d+ %S+ (%d+)'))
    redis.call('SET', prefix .. ':lease', incarnation .. ' ' .. epoch .. ' ' .. ARGV[4])
    local mark = redis.call('HGET', prefix .. ':ids', '')
    if not (mark and redis.call('ZSCORE', prefix .. ':timers', ''))
      or is_gone(prefix .. ':inbox', ARGV[i + 2]) or is_gone(prefix .. ':events', ARGV[i + 3]) then
      number = -2
      if mark ~= 'untimed' then redis.call('HSET', prefix .. ':ids', '', 'torn') end
    end
  elseif tonumber(string.match(head, '^%d+') or epoch) < tonumber(epoch) then
    number = -2
  end
  answers[#answers + 1] = number
end
return answers
