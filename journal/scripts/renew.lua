-- Renews the leases of a host and says that it is there.
-- KEYS: none
-- ARGV: namespace, incarnation, about the host, beat, then for each: shard, epoch
-- Returns: for each, the number of the shard's last commit, or -1 if it is no longer this host's
-- Promise 6: only the owner by head renews. Fenced, not numbered: once more does no harm.
local ns, incarnation = ARGV[1], ARGV[2]
redis.call('HSET', ns .. ':hosts', incarnation, ARGV[4] .. ' ' .. ARGV[3])
local answers = {}
for i = 5, #ARGV, 2 do
  local prefix, owner = ns .. ':' .. ARGV[i], ARGV[i + 1] .. ' ' .. incarnation
  local head = redis.call('GET', prefix .. ':head') or ''
  local number = -1
  if string.sub(head, 1, #owner + 1) == owner .. ' ' then
    number = tonumber(string.match(head, '^%d+ %S+ (%d+)'))
    redis.call('SET', prefix .. ':lease', incarnation .. ' ' .. ARGV[i + 1] .. ' ' .. ARGV[4])
  end
  answers[#answers + 1] = number
end
return answers
