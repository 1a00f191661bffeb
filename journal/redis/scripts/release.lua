-- Frees the leases of a host that hands shards over, and wakes the others.
-- KEYS: none
-- ARGV: namespace, incarnation, leaving (0/1), then for each: shard, epoch
-- Returns: how many were freed
-- Promise 6: only its own leases, and its head names nobody afterwards, so that its own late commits are refused too.
local ns, incarnation, freed = ARGV[1], ARGV[2], 0
for i = 4, #ARGV, 2 do
  local prefix, owner = ns .. ':' .. ARGV[i], ARGV[i + 1] .. ' ' .. incarnation
  local head = redis.call('GET', prefix .. ':head') or ''
  if string.sub(head, 1, #owner + 1) == owner .. ' ' then
    redis.call('SET', prefix .. ':head', ARGV[i + 1] .. ' - ' .. string.match(head, '^%d+ %S+ (%d+)') .. ' ')
    redis.call('DEL', prefix .. ':lease')
    freed = freed + 1
  end
end
if ARGV[3] == '1' then redis.call('HDEL', ns .. ':hosts', incarnation) end
redis.call('XADD', ns .. ':control', 'MAXLEN', '~', '100', '*', 'released', incarnation)
return freed
