#!lua flags=allow-oom
-- Open the books of an org: nothing is written into a store that has none.
--
-- KEYS  1 archive (see claim.lua), 2 not used, 3 rows, 4 unconfirmed
-- ARGV  1 id, 2 at_ms, 3 number of the first row, 4 its outcome: opened | repair, 5 particulars
-- Reply {id, "opened" | "open"}
--       {id, "books_closed"}   there were books, which this store has lost: they are not begun anew
--       {id, "clock_skew"}
--
-- allow-oom: endings are written even into a store that is full, by whoever has just started, too.

local id, at_ms = ARGV[1], ARGV[2]
assert(#ARGV == 5, 'five arguments')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if not books_are_closed() then
  return { id, 'open' }
end
local ARCHIVE = 1
local archived = redis.call('HMGET', KEYS[ARCHIVE], 'through', 'behind')
if ARGV[4] == 'opened' and (archived[1] or archived[2]) then
  return { id, 'books_closed' }
end
-- So that the key is always there: one that is not could be on either node while a slot is moved.
redis.call('ZADD', KEYS[UNCONFIRMED], '+inf', id)
write_row({ at_ms = at_ms, outcome = ARGV[4], id = id, particulars = ARGV[5] }, {}, ARGV[3])
return { id, 'opened' }
