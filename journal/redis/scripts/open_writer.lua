-- Opens a driver's writer: its number, 0, and its empty reply stream.
-- KEYS: none
-- ARGV: namespace, writer, session in ms
-- Returns: nothing
-- Promise 8: also while the store is full, since a cancel needs a writer. Replies are appended only where the stream
-- exists, so that a driver that is gone gets none.
local key, replies = ARGV[1] .. ':writer:' .. ARGV[2], ARGV[1] .. ':replies:' .. ARGV[2]
redis.call('SET', key, 0, 'PX', ARGV[3])
redis.call('XGROUP', 'CREATE', replies, 'none', '0', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', replies, 'none')
redis.call('PEXPIRE', replies, ARGV[3])
