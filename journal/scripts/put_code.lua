-- Keeps code under its hash; new code becomes current for its types.
-- KEYS: none
-- ARGV: namespace, hash, code, then the names of types
-- Returns: 1 if the code is new, else 0
-- Promise 3: kept and current at once; an old program that starts again finds its hash known and changes nothing.
local ns, digest = ARGV[1], ARGV[2]
if not redis.call('SET', ns .. ':code:' .. digest, ARGV[3], 'NX') then return 0 end
for i = 4, #ARGV do redis.call('HSET', ns .. ':code', ARGV[i], digest) end
return 1
