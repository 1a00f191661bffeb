-- Keeps code under its hash; new code becomes current for its types.
-- KEYS: none
-- ARGV: namespace, hash, code, the code that it replaces (or nothing), then the names of types
-- Returns: 1 if the code is new, else 0
-- Promise 3: kept and current at once; an old program that starts again finds its hash known and changes nothing.
local ns, digest = ARGV[1], ARGV[2]
local key = ns .. ':code:' .. digest
if ARGV[4] ~= '' and redis.call('GET', key) == ARGV[4] then
  redis.call('SET', key, ARGV[3])
  return 0
end
if not redis.call('SET', key, ARGV[3], 'NX') then return 0 end
for i = 5, #ARGV do redis.call('HSET', ns .. ':code', ARGV[i], digest) end
return 1
