#!lua flags=no-writes
-- What an audit compares, at one instant: some counters, who holds anything, and the last row.
--
-- KEYS  1 not used, 2 leases, 3 rows, 4 not used, 5.. counters
-- ARGV  1 id
-- Reply {id, "cut", number of the last row, {open reservations}, {field, amount, ...} per counter}
--       {id, "books_closed"}

local id = ARGV[1]
assert(#ARGV == 1, 'one argument')

if books_are_closed() then
  return { id, 'books_closed' }
end
local reply = { id, 'cut', as_text(last_row_seq()), redis.call('ZRANGE', KEYS[LEASES], 0, -1) }
for i = FIRST_COUNTER, #KEYS do
  reply[#reply + 1] = redis.call('HGETALL', KEYS[i])
end
return reply
