-- Frees the leases of a host whose process is known to be dead, and wakes the others.
-- KEYS: none
-- ARGV: namespace, incarnation
-- Returns: how many were freed
-- Promise 6: heads stay as they are, so that a takeover knows that it was not a hand-over. Once more does no harm.
local ns, incarnation, freed = ARGV[1], ARGV[2], 0
for shard = 0, tonumber(redis.call('HGET', ns .. ':meta', 'shards') or 0) - 1 do
  local key = ns .. ':' .. shard .. ':lease'
  local lease = redis.call('GET', key)
  if lease and string.sub(lease, 1, #incarnation + 1) == incarnation .. ' ' then
    redis.call('DEL', key)
    freed = freed + 1
  end
end
redis.call('HDEL', ns .. ':hosts', incarnation)
redis.call('XADD', ns .. ':control', 'MAXLEN', '~', '100', '*', 'buried', incarnation)
return freed
