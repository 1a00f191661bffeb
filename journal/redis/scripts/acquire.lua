-- Takes a shard's lease that nobody has, or that its owner has not renewed since the challenger looked.
-- KEYS: none
-- ARGV: namespace, shard, incarnation, value seen for a whole time to live ('' if none)
-- Returns: {'g', epoch, number, clean (0/1), whole (1, or it is to be mended first: 0, 2: its timers are gone)} | {'h', value held} | {'d', damaged head}
-- Promise 6: the epoch grows with every grant, so what the former owner still sends is refused.
local prefix = ARGV[1] .. ':' .. ARGV[2]
local lease = redis.call('GET', prefix .. ':lease')
if lease and lease ~= ARGV[4] then return {'h', lease} end
local head = redis.call('GET', prefix .. ':head') or '0 - 0 '
if string.sub(head, 1, 7) == 'damaged' then return {'d', head} end
local epoch, owner, number = string.match(head, '^(%d+) (%S+) (%d+)')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local grown = string.format('%.0f', math.max(tonumber(epoch) + 1, now))
-- `ids` and `timers` are never empty from here on: where one of them is not there, somebody has deleted it.
local mark, timed = redis.call('HGET', prefix .. ':ids', ''), redis.call('ZSCORE', prefix .. ':timers', '')
local whole = mark == '-' and timed
if not (mark or timed) then -- nobody has owned it yet, or only a version without marks
  local others = {':inbox', ':journal', ':done', ':outcomes', ':held'}
  for k, name in ipairs(others) do others[k] = prefix .. name end
  whole = redis.call('EXISTS', prefix .. ':ids') == 1 or redis.call('EXISTS', unpack(others)) == 0
end
local untimed = not whole and (not timed or mark == 'untimed')
redis.call('HSET', prefix .. ':ids', '', whole and '-' or untimed and 'untimed' or 'torn')
redis.call('ZADD', prefix .. ':timers', 'inf', '')
redis.call('SET', prefix .. ':head', grown .. ' ' .. ARGV[3] .. ' ' .. number .. ' ')
redis.call('SET', prefix .. ':lease', ARGV[3] .. ' ' .. grown .. ' 0')
return {'g', grown, number, owner == '-' and 1 or 0, whole and 1 or untimed and 2 or 0}
