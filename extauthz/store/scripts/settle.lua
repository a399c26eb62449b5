#!lua flags=allow-oom
-- End a reservation with what the call did cost, exactly once.
--
-- KEYS  1 reservation, 2 leases, 3 rows, 4 unconfirmed, 5.. counters, as the call's own metadata names them
-- ARGV  1 id, 2 at_ms, 3 when to forget the ended reservation,
--       4 young 0|1: whether it may be recovered if the store has lost it,
--       5 cost in nano-USD, 6 particulars,
--       then for each counter: cost, forget_at_ms
-- Reply {id, outcome, charged}
--       {id, "books_closed"} | {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--
-- allow-oom: a cost is a fact, it is written even into a store that is full.

local id, at_ms, forget_at_ms, young = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local cost, particulars = ARGV[5], ARGV[6]
local ARGS_BEFORE, ARGS_PER_CHARGE = 6, 2
assert(#ARGV == ARGS_BEFORE + ARGS_PER_CHARGE * (#KEYS - FIRST_COUNTER + 1), 'arguments per counter')

local costs, counters_forget_at_ms = {}, {}
for at = ARGS_BEFORE + 1, #ARGV, ARGS_PER_CHARGE do
  costs[#costs + 1] = ARGV[at]
  counters_forget_at_ms[#counters_forget_at_ms + 1] = ARGV[at + 1]
end

-- A counter that was forgotten with its window: nothing is applied there silently. One that is gone
-- before that was lost, as the reservation was: it is made anew.
local function is_recoverable()
  if young ~= '1' then
    return false
  end
  for i = FIRST_COUNTER, #KEYS do
    local forget = counters_forget_at_ms[i - FIRST_COUNTER + 1]
    if redis.call('EXISTS', KEYS[i]) == 0 and tonumber(forget) <= tonumber(at_ms) then
      return false
    end
  end
  return true
end

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local record = read_record(KEYS[RECORD])
if record and record.state == 'settled' then
  return repeated(id, at_ms, record, costs, cost, particulars)
end
if not record and not is_recoverable() then
  write_row({
    at_ms = at_ms, outcome = 'dead_letter', id = id, claimed = cost, particulars = particulars,
  }, {})
  return { id, 'dead_letter', '' }
end
local was_held_here = record and record.k1
if was_held_here and not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end
local out_of_range = first_counter_out_of_range(at_ms)
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local outcome
if was_held_here then
  outcome = ({ held = 'settled', expired = 'late', released = 'anomaly' })[record.state]
else
  outcome = record and 'anomaly' or 'recovered'
  record = { state = 'unseen', p = record and record.p }
  for i, counter_forget_at_ms in ipairs(counters_forget_at_ms) do
    record['f' .. i] = counter_forget_at_ms
  end
end
if particulars == '' then
  particulars = record.p
end
local cost_before = record.state == 'expired' and record.cost or '0'
local charged_at = record.charged_at
local postings = move_to(record, costs, at_ms)
write_row({
  at_ms = at_ms, outcome = outcome, id = id, cost = cost, cost_before = cost_before,
  charged_at = charged_at, particulars = particulars,
}, postings)
write_ended(id, 'settled', record, costs, cost, forget_at_ms)
return { id, outcome, table.concat(costs, ' ') }
