#!lua flags=allow-oom
-- Set a counter to what the books say, if nothing has moved on it since the audit looked, and write a
-- row.
--
-- KEYS  1, 2 not used, 3 rows, 4 not used, 5 the counter
-- ARGV  1 id, 2 at_ms, 3 when the counter may be forgotten, if nothing says so yet, 4 particulars,
--       5 the number of the last row when the audit looked,
--       then for each field: its name, what it showed ('' if it was not there), what it must show
-- Reply {id, "repaired"}
--       {id, "changed"}   it shows something else by now, or a row about it was written: nothing was
--                         changed
--       {id, "books_closed"} | {id, "clock_skew"}
--
-- allow-oom: what is there stays there.

local id, at_ms, forget_at_ms, particulars, seen_seq = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local counter = KEYS[FIRST_COUNTER]
assert((#ARGV - 5) % 3 == 0 and #KEYS == FIRST_COUNTER, 'three arguments for each field')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end

-- What a counter shows does not tell that nothing has moved: one that was lost is kept from falling
-- below zero, so a call may have ended on it and left the 0 that was seen. But its row names it.
local name = string.sub(counter, #KEYS[ROWS] - #'rows' + #'c:' + 1)
local next_seq = tonumber(seen_seq) + 1
for _, row in ipairs(redis.call('XRANGE', KEYS[ROWS], '(0-' .. seen_seq, '+')) do
  local fields = {}
  for i = 1, #row[2], 2 do
    fields[row[2][i]] = row[2][i + 1]
  end
  if row[1] ~= '0-' .. as_text(next_seq) or -- one before it is archived and gone: who knows about what
    string.find('\n' .. fields.counters .. '\n', '\n' .. name .. '\n', 1, true) then
    return { id, 'changed' }
  end
  next_seq = next_seq + 1
end
if next_seq <= last_row_seq() then
  return { id, 'changed' }
end
for i = 6, #ARGV, 3 do
  if (redis.call('HGET', counter, ARGV[i]) or '') ~= ARGV[i + 1] then
    return { id, 'changed' }
  end
end
for i = 6, #ARGV, 3 do
  redis.call('HSET', counter, ARGV[i], ARGV[i + 2])
end
if redis.call('PTTL', counter) < 0 then -- it was gone; one that outlives the books would be a drift
  remember_until(counter, forget_at_ms)
end
write_row({ at_ms = at_ms, outcome = 'repair', id = id, particulars = particulars }, {})
return { id, 'repaired' }
