#!lua flags=allow-oom
-- Put one key back as it must be, while the books are closed: a counter, an ended reservation, what is
-- overridden, the id of an override, or how far the rows are archived.
--
-- KEYS  1 not used, 2 leases, 3 rows, 4 unconfirmed, 5 the key
-- ARGV  1 id, 2 when it may be forgotten, or nothing, 3 the reservation that it is about, or nothing,
--       4 unconfirmed 0|1: whether only a lease has ended that one, then either a text, or the fields
--       of a hash and their values; nothing at all: the key is not to be there
-- Reply {id, "restored"}
--       {id, "books_open"}   somebody works with them: nothing was changed
--
-- allow-oom: it was there before.

local id, forget_at_ms, reservation, unconfirmed = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ARGS_BEFORE = 4
local WORDS_AT_ONCE = 1000 -- (even; Lua passes about 8,000 values to a function)
local words = #ARGV - ARGS_BEFORE
assert(words == 1 or (words >= 0 and words % 2 == 0), 'a text, or fields and values')

if not books_are_closed() then
  return { id, 'books_open' }
end
redis.call('DEL', KEYS[FIRST_COUNTER])
if words == 1 then
  redis.call('SET', KEYS[FIRST_COUNTER], ARGV[ARGS_BEFORE + 1])
elseif words > 1 then
  for first = ARGS_BEFORE + 1, #ARGV, WORDS_AT_ONCE do
    local last = math.min(first + WORDS_AT_ONCE - 1, #ARGV)
    redis.call('HSET', KEYS[FIRST_COUNTER], unpack(ARGV, first, last))
  end
end
if forget_at_ms ~= '' then
  redis.call('PEXPIREAT', KEYS[FIRST_COUNTER], forget_at_ms)
end
if reservation ~= '' then
  redis.call('ZREM', KEYS[LEASES], reservation) -- a store that was set back may hold it still
  if unconfirmed == '1' then
    redis.call('ZADD', KEYS[UNCONFIRMED], forget_at_ms, reservation)
  else
    redis.call('ZREM', KEYS[UNCONFIRMED], reservation)
  end
end
return { id, 'restored' }
