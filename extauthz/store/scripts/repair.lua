#!lua flags=allow-oom
-- Set a counter to what the books say, if it still shows what the audit saw, and write a row.
--
-- KEYS  1, 2 not used, 3 rows, 4 not used, 5 the counter
-- ARGV  1 id, 2 at_ms, 3 when the counter may be forgotten, if nothing says so yet, 4 particulars,
--       then for each field: its name, what it showed ('' if it was not there), what it must show
-- Reply {id, "repaired"}
--       {id, "changed"}   it shows something else by now: nothing was changed
--       {id, "books_closed"} | {id, "clock_skew"}
--
-- allow-oom: what is there stays there.

local id, at_ms, forget_at_ms, particulars = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local counter = KEYS[FIRST_COUNTER]
assert((#ARGV - 4) % 3 == 0 and #KEYS == FIRST_COUNTER, 'three arguments for each field')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
for i = 5, #ARGV, 3 do
  if (redis.call('HGET', counter, ARGV[i]) or '') ~= ARGV[i + 1] then
    return { id, 'changed' }
  end
end
for i = 5, #ARGV, 3 do
  redis.call('HSET', counter, ARGV[i], ARGV[i + 2])
end
if redis.call('PTTL', counter) < 0 then -- it was gone; one that outlives the books would be a drift
  remember_until(counter, forget_at_ms)
end
write_row({ at_ms = at_ms, outcome = 'repair', id = id, particulars = particulars }, {})
return { id, 'repaired' }
