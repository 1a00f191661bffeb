-- Opens a namespace: of a new one it writes format, number of shards and limits, all together.
-- KEYS: none
-- ARGV: namespace, format, number of shards, limits
-- Returns: the stored format, number of shards and limits; nil for the limits of a namespace of version 0.1.0
-- Promise 1: every program finds the shards in which accepted requests lie, also if two programs open it at once, and if
-- one died half way: version 0.1.0 wrote the format first, and then the number of shards.
local key = ARGV[1] .. ':meta'
redis.call('HSETNX', key, 'format', ARGV[2])
if redis.call('HEXISTS', key, 'shards') == 0 then redis.call('HSET', key, 'shards', ARGV[3], 'limits', ARGV[4]) end
return redis.call('HMGET', key, 'format', 'shards', 'limits')
