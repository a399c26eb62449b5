#!lua flags=allow-oom
-- Charge a reservation whose lease has run out: what is not known to be free is charged.
--
-- KEYS  1 reservation, 2 leases, 3 rows, 4 unconfirmed,
--       5.. counters, as a read of the reservation named them just before
-- ARGV  1 id, 2 at_ms, 3 when to forget the ended reservation
-- Reply {id, "expired", charged}
--       {id, "not_due"}   it was renewed or has ended since
--       {id, "books_closed"} | {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--
-- allow-oom: a charge is a fact, it is written even into a store that is full.

local id, at_ms, forget_at_ms = ARGV[1], ARGV[2], ARGV[3]
assert(#ARGV == 3, 'three arguments')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local record = read_record(KEYS[RECORD])
if not record or record.state ~= 'held' then
  -- Only a record that somebody deleted by hand leaves its lease behind; it would be due for ever.
  redis.call('ZREM', KEYS[LEASES], id)
  return { id, 'not_due' }
end
local lease_until_ms = redis.call('ZSCORE', KEYS[LEASES], id)
if lease_until_ms and tonumber(lease_until_ms) > tonumber(at_ms) then
  return { id, 'not_due' }
end
if not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end
local out_of_range = first_counter_out_of_range(at_ms)
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local charged = {}
for i = 1, #KEYS - FIRST_COUNTER + 1 do
  local amount, observed = record['a' .. i], record['o' .. i] or '0'
  if record['t' .. i] then
    charged[i] = '0'
  elseif tonumber(observed) > tonumber(amount) then
    charged[i] = observed
  else
    charged[i] = amount
  end
end
local cost = record.cost
if tonumber(record.seen or '0') > tonumber(cost) then
  cost = record.seen
end
local postings = move_to(record, charged, at_ms)
write_row({
  at_ms = at_ms, outcome = 'expired_unconfirmed', id = id, cost = cost, particulars = record.p,
}, postings)
write_ended(id, 'expired', record, charged, cost, forget_at_ms, at_ms)
redis.call('ZADD', KEYS[UNCONFIRMED], as_text(redis.call('PEXPIRETIME', KEYS[RECORD])), id)
redis.call('ZREMRANGEBYSCORE', KEYS[UNCONFIRMED], '-inf', at_ms) -- those that are forgotten by now
return { id, 'expired', table.concat(charged, ' ') }
