-- Reads a page for operators: invocations of a shard in one place, or the records of one invocation in memory.
-- KEYS: none
-- ARGV: namespace, shard, kind, cursor ('' at first), most entries to look at, most bytes to look at, what is wanted:
--       kind 'i' (inbox): beginning of the target in JSON  |  'a' (asleep): the same, and '1' for paused ones alone
--       kind 'd' (finished, newest first): beginning of the target  |  'j' (journal): invocation
-- Returns: the next cursor ('' after the last page), then for each that was found:
--          'i': inbox id, first line of the message  |  'j': stream id, record
--          'a': invocation, inbox id, first line of the message, '-' or why it is paused after '=', count of fields
--          'd': stream id, invocation, target and handler, outcome without its value
-- Promise 9: a page looks at so much, whether it matches or not.
local call, prefix, kind, cursor = redis.call, ARGV[1] .. ':' .. ARGV[2], ARGV[3], ARGV[4]
local most, bytes_most, wanted = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local out, seen, bytes = {''}, 0, 0
local CHUNK = 8 -- so many entries are read at once: each may be large

local function first_line(data)
  local line_end = string.find(data, '\n', 1, true)
  return line_end and string.sub(data, 1, line_end) or data
end

-- A message begins with a list of its id and its target.
local function is_wanted(line)
  local comma = string.find(line, '","', 1, true)
  return wanted == '' or (comma and string.sub(line, comma + 3, comma + 2 + #wanted) == wanted)
end

local function add(...)
  for _, each in ipairs({...}) do out[#out + 1] = each end
end

local function short(outcome)
  return string.sub(outcome, 1, 1) == 'V' and 'V' or first_line(outcome)
end

local takes = {}
function takes.i(id, fields)
  local line = first_line(fields[2])
  if is_wanted(line) then add(id, line) end
end
function takes.j(id, fields)
  if fields[2] == wanted then add(id, fields[4]) end
end
function takes.d(id, fields)
  if string.sub(fields[6], 1, #wanted) ~= wanted then return end
  local outcome = fields[4]
  if outcome == '' then outcome = call('HGET', prefix .. ':outcomes', fields[2]) or '' end
  add(id, fields[2], fields[6], short(outcome))
end

local function weigh(fields)
  for k = 2, #fields, 2 do bytes = bytes + #fields[k] end
end

local function stream(key)
  local is_newest_first = kind == 'd'
  while seen < most and bytes < bytes_most do
    local from, to, command = cursor == '' and '-' or '(' .. cursor, '+', 'XRANGE'
    if is_newest_first then from, to, command = cursor == '' and '+' or '(' .. cursor, '-', 'XREVRANGE' end
    local found = call(command, key, from, to, 'COUNT', math.min(CHUNK, most - seen))
    for _, entry in ipairs(found) do
      weigh(entry[2])
      takes[kind](entry[1], entry[2])
      cursor = entry[1]
    end
    seen = seen + #found
    if #found < CHUNK then
      if seen < most or #found == 0 then return '' end
      return cursor
    end
  end
  return cursor
end

local function asleep()
  local page = call('HSCAN', prefix .. ':ids', cursor == '' and '0' or cursor, 'COUNT', most)
  local entries = page[2]
  for k = 1, #entries, 2 do
    if string.byte(entries[k + 1]) == 97 then -- a
      local key = prefix .. ':asleep:' .. entries[k]
      local fields = call('HMGET', key, 'm', 'id', 'paused')
      if fields[1] and (ARGV[8] ~= '1' or (fields[3] and fields[3] ~= '')) then
        local line = first_line(fields[1])
        if is_wanted(line) then
          add(entries[k], fields[2] or '', line, fields[3] and '=' .. fields[3] or '-', call('HLEN', key))
        end
      end
    end
  end
  return page[1] == '0' and '' or page[1]
end

if kind == 'a' then
  out[1] = asleep()
else
  out[1] = stream(prefix .. ':' .. ({i = 'inbox', j = 'journal', d = 'done'})[kind])
end
return out
