#!lua
-- Hold an amount on every counter at once, or on none.
--
-- KEYS  1 reservation, 2 leases, 3 rows, 4 overrides, 5.. counters
-- ARGV  1 id, 2 at_ms, 3 lease_until_ms, 4 whose pause refuses it ("agent:NAME team:NAME"),
--       5 the most it can cost in nano-USD, 6 particulars, 7 remember_until_ms,
--       then for each counter: amount, limit, enforcing 0|1, forget_at_ms, transient 0|1, and the
--       id of the budget whose overrides apply, or nothing
-- Reply {id, "reserved" | "refused", spent, held, limit, ...}  balances as they stood before
--       {id, "held_already", spent, held, limit, ...}          a repeat: balances as they stand
--       {id, "paused", until_ms}                               '' without an end
--       {id, "ended", state}                                   never an admission
--       {id, "books_closed"} | {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--       where spent may be several amounts to be added up, and limit is the one in force
--
-- Without allow-oom: a store that is full refuses before the script runs, never half-way.

local OVERRIDES = UNCONFIRMED -- which no reserve has anything to do with
local id, at_ms, lease_until_ms = ARGV[1], ARGV[2], ARGV[3]
local ARGS_BEFORE, ARGS_PER_HOLD = 7, 6
assert(#ARGV == ARGS_BEFORE + ARGS_PER_HOLD * (#KEYS - FIRST_COUNTER + 1), 'arguments per counter')

local function hold_of(i)
  local at = ARGS_BEFORE + ARGS_PER_HOLD * (i - FIRST_COUNTER)
  return {
    amount = ARGV[at + 1],
    limit = ARGV[at + 2],
    is_enforcing = ARGV[at + 3] == '1',
    forget_at_ms = ARGV[at + 4],
    transient = ARGV[at + 5],
    budget_id = ARGV[at + 6],
  }
end

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local record = read_record(KEYS[RECORD])
if record and record.state ~= 'held' then
  return { id, 'ended', record.state }
end
if record and not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end

-- Everything that may be overridden in one read: pauses first, then the budgets in order.
local pausable = split(ARGV[4])
local names = {}
for _, who in ipairs(pausable) do
  names[#names + 1] = 'pause:' .. who
end
local holds = {}
for i = FIRST_COUNTER, #KEYS do
  holds[i] = hold_of(i)
  names[#names + 1] = holds[i].budget_id
end
local overrides = redis.call('HMGET', KEYS[OVERRIDES], unpack(names))

local paused_until
for n = 1, #pausable do
  local until_ms = overrides[n] and string.sub(overrides[n], 2)
  if until_ms and is_before(at_ms, until_ms) then
    paused_until = later_end(until_ms, paused_until or until_ms)
  end
end
if paused_until and not record then
  return { id, 'paused', paused_until }
end

local reply, out_of_range = { id, record and 'held_already' or 'reserved' }, nil
for i = FIRST_COUNTER, #KEYS do
  local counter, hold = read_counter(KEYS[i], at_ms), holds[i]
  local override = overrides[#pausable + i - FIRST_COUNTER + 1]
  local limit = limit_in_force(override, hold.limit, at_ms)
  reply[#reply + 1] = counter.spent_text
  reply[#reply + 1] = counter.held
  reply[#reply + 1] = limit
  local used = counter.spent + tonumber(counter.held) + tonumber(hold.amount)
  if not record and hold.is_enforcing and used > tonumber(limit) then
    reply[2] = 'refused'
  end
  if is_out_of_range(counter) then
    out_of_range = out_of_range or KEYS[i]
  end
end
if reply[2] ~= 'reserved' then
  return reply
end
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local fields = { 'state', 'held', 'cost', ARGV[5], 'p', ARGV[6], 'remember_until', ARGV[7] }
for i = FIRST_COUNTER, #KEYS do
  local hold, n = holds[i], i - FIRST_COUNTER + 1
  redis.call('HINCRBY', KEYS[i], 'held', hold.amount)
  remember_until(KEYS[i], hold.forget_at_ms)
  tidy_rolling(KEYS[i], at_ms)
  local remembered = { 'k' .. n, KEYS[i], 'a' .. n, hold.amount, 'f' .. n, hold.forget_at_ms }
  for _, word in ipairs(remembered) do
    fields[#fields + 1] = word
  end
  if hold.transient == '1' then
    fields[#fields + 1] = 't' .. n
    fields[#fields + 1] = '1'
  end
end
redis.call('HSET', KEYS[RECORD], unpack(fields))
redis.call('ZADD', KEYS[LEASES], lease_until_ms, id)
return reply
