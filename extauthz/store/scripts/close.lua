#!lua flags=allow-oom
-- Close the books of an org, if they still end where they were read to: nothing is written then.
--
-- KEYS  1, 2 not used, 3 rows
-- ARGV  1 id, 2 number of the last row that was read
-- Reply {id, "closed"}
--       {id, "changed"}   a row was written meanwhile: nothing was changed
--
-- Its rows are in the archive by now, or are copies of what is there.

local id, last_read = ARGV[1], ARGV[2]
assert(#ARGV == 2, 'two arguments')

if not books_are_closed() then
  local newest = redis.call('XREVRANGE', KEYS[ROWS], '+', '-', 'COUNT', 1)[1]
  if newest and newest[1] ~= '0-' .. last_read then
    return { id, 'changed' }
  end
  redis.call('DEL', KEYS[ROWS])
end
return { id, 'closed' }
