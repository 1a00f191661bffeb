-- Forgets finished invocations of shards that end nothing more, and so trim nothing with their commits.
-- KEYS: none
-- ARGV: namespace, most entries of `done`, retention in ms, most to forget of each shard, then for each: shard, owner
--       (`epoch incarnation`)
-- Returns: how many were forgotten
-- Promises 6 and 9: only by the shard's owner. Fenced, not numbered: once more forgets only what is there. A shard in
-- which something foreign lies keeps no other from it.
local ns, done_max, retention, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = call('TIME')
local now, forgotten = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), 0

local function trim(names, owner)
  if string.sub(call('GET', names.head) or '', 1, #owner) ~= owner then return end
  local excess = call('XLEN', names.done) - done_max
  forgotten = forgotten + forget_done(names, most, excess, math.max(now - retention, 0))
  forgotten = forgotten + forget_kept(names, most, now)
end

for i = 5, #ARGV, 2 do pcall(trim, setmetatable({prefix = ns .. ':' .. ARGV[i]}, naming), ARGV[i + 1] .. ' ') end
return forgotten
