#!lua flags=allow-oom
-- End a reservation for free. An unknown id is marked, so that its reserve cannot come after it:
-- whoever gave up waiting for a reserve releases it, and the two may arrive in any order.
--
-- KEYS  1 reservation, 2 leases, 3 rows, 4 unconfirmed, 5.. counters
-- ARGV  1 id, 2 at_ms, 3 when to forget the ended reservation,
--       4 how the books call it: released | abandoned, 5 particulars
-- Reply {id, outcome, charged}
--       {id, "books_closed"} | {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--
-- allow-oom: it gives room back.

local id, at_ms, forget_at_ms = ARGV[1], ARGV[2], ARGV[3]
local outcome_in_books, particulars = ARGV[4], ARGV[5]
assert(#ARGV == 5, 'five arguments')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local record = read_record(KEYS[RECORD])
if not record then
  write_row({
    at_ms = at_ms, outcome = outcome_in_books, id = id, particulars = particulars,
  }, {})
  write_ended(id, 'released', {}, {}, '0', forget_at_ms)
  return { id, 'released', '' }
end
local free = {}
while record['k' .. (#free + 1)] do
  free[#free + 1] = '0'
end
if record.state == 'settled' or record.state == 'released' then
  return repeated(id, at_ms, record, free, '0', particulars)
end
if not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end
local out_of_range = first_counter_out_of_range(at_ms)
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local cost_before = record.state == 'expired' and record.cost or '0'
local charged_at = record.charged_at
if particulars == '' then
  particulars = record.p
end
local state, outcome = 'released', 'released'
if record.state == 'expired' then -- it was charged: that it cost nothing is its settlement
  state, outcome, outcome_in_books = 'settled', 'late', 'late'
end
local postings = move_to(record, free, at_ms)
write_row({
  at_ms = at_ms, outcome = outcome_in_books, id = id, cost_before = cost_before,
  charged_at = charged_at, particulars = particulars,
}, postings)
write_ended(id, state, record, free, '0', forget_at_ms)
return { id, outcome, table.concat(free, ' ') }
