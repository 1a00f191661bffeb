-- Takes a shard's lease that nobody has, or that its owner has not renewed since the challenger looked.
-- KEYS: none
-- ARGV: namespace, shard, incarnation, value seen for a whole time to live ('' if none)
-- Returns: {'g', epoch, number, clean (0/1)} | {'h', value held} | {'d', damaged head}
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
redis.call('SET', prefix .. ':head', grown .. ' ' .. ARGV[3] .. ' ' .. number .. ' ')
redis.call('SET', prefix .. ':lease', ARGV[3] .. ' ' .. grown .. ' 0')
return {'g', grown, number, owner == '-' and 1 or 0}
