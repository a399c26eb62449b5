#!lua flags=allow-oom
-- Put one hash back as it must be, while the books are closed: a counter, an ended reservation, or how
-- far the rows are archived.
--
-- KEYS  1, 2 not used, 3 rows, 4 unconfirmed, 5 the hash
-- ARGV  1 id, 2 when it may be forgotten, or nothing, 3 a reservation to name as unconfirmed, or nothing,
--       then its fields and their values
-- Reply {id, "restored"}
--       {id, "books_open"}   somebody works with them: nothing was changed
--
-- allow-oom: it was there before.

local id, forget_at_ms, unconfirmed = ARGV[1], ARGV[2], ARGV[3]
assert(#ARGV > 4 and #ARGV % 2 == 1, 'fields and values')

if not books_are_closed() then
  return { id, 'books_open' }
end
redis.call('DEL', KEYS[FIRST_COUNTER])
redis.call('HSET', KEYS[FIRST_COUNTER], unpack(ARGV, 4))
if forget_at_ms ~= '' then
  redis.call('PEXPIREAT', KEYS[FIRST_COUNTER], forget_at_ms)
end
if unconfirmed ~= '' then
  redis.call('ZADD', KEYS[UNCONFIRMED], forget_at_ms, unconfirmed)
end
return { id, 'restored' }
