#!lua flags=allow-oom
-- Close the books of an org, if they still end where they were read to: nothing is written then.
--
-- KEYS  1, 2 not used, 3 rows
-- ARGV  1 id, 2 number of the last row that was ever written, as far as the caller has read
-- Reply {id, "closed"}
--       {id, "changed"}   a row was written meanwhile: nothing was changed
--
-- Its rows are in the archive by now, or are copies of what is there. What the stream has still got
-- says nothing of its end: rows that are archived are trimmed.

local id, last_read = ARGV[1], ARGV[2]
assert(#ARGV == 2, 'two arguments')

if not books_are_closed() then
  local stream = redis.call('XINFO', 'STREAM', KEYS[ROWS])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' and stream[i + 1] ~= '0-' .. last_read then
      return { id, 'changed' }
    end
  end
  redis.call('DEL', KEYS[ROWS])
end
return { id, 'closed' }
