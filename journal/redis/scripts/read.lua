-- Reads in order, until the answers take so many bytes; the rest is left for the next time.
-- KEYS: none
-- ARGV: namespace, bytes, then for each: count of words that follow, a reading command. XRANGE is cut between entries.
-- Returns: whether all room was taken (0/1), then the answers, of as many commands as there was room for, at least one
-- Promise 9: a link that is slow is given no more at once than it can carry in the time that an answer may take.
local most, out, size = tonumber(ARGV[2]), {0}, 0
local CHUNK = 8 -- so many entries are looked at, of which the last may be left

local function weigh(answer)
  if type(answer) == 'string' then
    size = size + #answer
  elseif type(answer) == 'table' then
    for _, each in ipairs(answer) do weigh(each) end
  end
end

local function page(key, from, count)
  local answer, is_over = {}, false
  while not is_over and #answer < count do
    local asked = math.min(CHUNK, count - #answer)
    local found = redis.call('XRANGE', key, from, '+', 'COUNT', asked)
    is_over = #found < asked
    for _, entry in ipairs(found) do
      if size >= most then return answer end
      weigh(entry)
      answer[#answer + 1] = entry
      from = '(' .. entry[1]
    end
  end
  return answer
end

local at = 3
while at <= #ARGV and (size < most or at == 3) do
  local following = at + 1 + tonumber(ARGV[at])
  if ARGV[at + 1] == 'XRANGE' then
    out[#out + 1] = page(ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]))
  else
    local answer = redis.call(unpack(ARGV, at + 1, following - 1))
    weigh(answer)
    out[#out + 1] = answer
  end
  at = following
end
if size >= most then out[1] = 1 end
return out
