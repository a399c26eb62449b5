#!lua flags=allow-oom
-- End a reservation for free. An unknown id is marked, so that its reserve cannot come after it:
-- whoever gave up waiting for a reserve releases it, and the two may arrive in any order.
--
-- KEYS  1 reservation, 2 leases, 3.. counters
-- ARGV  1 id, 2 at_ms, 3 when to forget the ended reservation
-- Reply {id, outcome, charged}
--       {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--
-- allow-oom: it gives room back.

local id, at_ms, forget_at_ms = ARGV[1], ARGV[2], ARGV[3]
assert(#ARGV == 3, 'three arguments')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
local record = read_record(KEYS[1])
if not record then
  write_ended(id, 'released', {}, {}, forget_at_ms)
  return { id, 'released', '' }
end
local free = {}
while record['k' .. (#free + 1)] do
  free[#free + 1] = '0'
end
if record.state == 'settled' or record.state == 'released' then
  return repeated(id, record, free)
end
if not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end
local out_of_range = first_counter_out_of_range(at_ms)
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

move_to(record, free, at_ms)
local state, outcome = 'released', 'released'
if record.state == 'expired' then -- it was charged: that it cost nothing is its settlement
  state, outcome = 'settled', 'late'
end
write_ended(id, state, record, free, forget_at_ms)
return { id, outcome, table.concat(free, ' ') }
