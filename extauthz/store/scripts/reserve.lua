#!lua
-- Hold an amount on every counter at once, or on none.
--
-- KEYS  1 reservation, 2 leases, 3.. counters
-- ARGV  1 id, 2 at_ms, 3 lease_until_ms,
--       then for each counter: amount, limit, enforcing 0|1, forget_at_ms, transient 0|1
-- Reply {id, "reserved" | "refused", spent, held, ...}  balances as they stood before
--       {id, "held_already", spent, held, ...}          a repeat: balances as they stand
--       {id, "ended", state}                            never an admission
--       {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--
-- Without allow-oom: a store that is full refuses before the script runs, never half-way.

local id, at_ms, lease_until_ms = ARGV[1], ARGV[2], ARGV[3]
local ARGS_BEFORE, ARGS_PER_HOLD = 3, 5
assert(#ARGV == ARGS_BEFORE + ARGS_PER_HOLD * (#KEYS - FIRST_COUNTER + 1), 'arguments per counter')

local function hold_of(i)
  local at = ARGS_BEFORE + ARGS_PER_HOLD * (i - FIRST_COUNTER)
  return {
    amount = ARGV[at + 1],
    limit = ARGV[at + 2],
    is_enforcing = ARGV[at + 3] == '1',
    forget_at_ms = ARGV[at + 4],
    transient = ARGV[at + 5],
  }
end

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
local record = read_record(KEYS[1])
if record and record.state ~= 'held' then
  return { id, 'ended', record.state }
end
if record and not names_its_counters(record) then
  return { id, 'holds_mismatch' }
end

local reply, out_of_range = { id, record and 'held_already' or 'reserved' }, nil
for i = FIRST_COUNTER, #KEYS do
  local balance = redis.call('HMGET', KEYS[i], 'spent', 'held')
  local spent, held = balance[1] or '0', balance[2] or '0'
  reply[#reply + 1] = spent
  reply[#reply + 1] = held
  local hold = hold_of(i)
  local used = tonumber(spent) + tonumber(held) + tonumber(hold.amount)
  if not record and hold.is_enforcing and used > tonumber(hold.limit) then
    reply[2] = 'refused'
  end
  if tonumber(spent) >= COUNTER_MAX or tonumber(held) >= COUNTER_MAX then
    out_of_range = out_of_range or KEYS[i]
  end
end
if reply[2] ~= 'reserved' then
  return reply
end
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local fields = { 'state', 'held' }
for i = FIRST_COUNTER, #KEYS do
  local hold, n = hold_of(i), i - FIRST_COUNTER + 1
  redis.call('HINCRBY', KEYS[i], 'held', hold.amount)
  remember_until(KEYS[i], hold.forget_at_ms)
  local remembered = { 'k' .. n, KEYS[i], 'a' .. n, hold.amount, 'f' .. n, hold.forget_at_ms }
  for _, word in ipairs(remembered) do
    fields[#fields + 1] = word
  end
  if hold.transient == '1' then
    fields[#fields + 1] = 't' .. n
    fields[#fields + 1] = '1'
  end
end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('ZADD', KEYS[2], lease_until_ms, id)
return reply
