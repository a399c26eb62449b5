#!lua
-- Hold an amount on every counter at once, or on none.
--
-- KEYS  1 reservation, 2 leases, 3 rows, 4 overrides, 5.. counters
-- ARGV  1 id, 2 at_ms, 3 lease_until_ms, 4 whose pause refuses it ("agent:NAME team:NAME"),
--       5 the most it can cost in nano-USD, 6 particulars, 7 remember_until_ms,
--       8 the field of the key by which it came in, or nothing,
--       then for each counter: amount, limit, enforcing 0|1, forget_at_ms, transient 0|1, and the
--       id of the budget whose overrides apply, or nothing;
--       if the call may be capped: its most, least and comfortable cap, its share of the room in
--       thousandths, its cost as fixed and rate, the largest cap that is written, then for each
--       counter: what it holds under the least cap if the counter may cap the call, or nothing;
--       fixed, rate
-- Reply {id, "reserved" | "refused", spent, held, limit, ...}  balances as they stood before
--       {id, "held_already", spent, held, limit, ...}          a repeat: balances as they stand
--       {id, "paused", until_ms}                               '' without an end
--       {id, "key_gone"}                                       not this agent's (any longer)
--       {id, "ended", state}                                   never an admission
--       {id, "books_closed"} | {id, "clock_skew"} | {id, "holds_mismatch"} | {id, "counter_range", key}
--       where spent may be several amounts to be added up, and limit is the one in force; those
--       with balances end with the cap, or nothing, if the call may be capped
--
-- Without allow-oom: a store that is full refuses before the script runs, never half-way.

local OVERRIDES = UNCONFIRMED -- which no reserve has anything to do with
local id, at_ms, lease_until_ms = ARGV[1], ARGV[2], ARGV[3]
local ARGS_BEFORE, ARGS_PER_HOLD, ARGS_OF_RANGE = 8, 6, 7
local COUNT = #KEYS - FIRST_COUNTER + 1
local ARGS_OF_CAP = ARGS_BEFORE + ARGS_PER_HOLD * COUNT
local may_be_capped = #ARGV > ARGS_OF_CAP
assert(#ARGV == ARGS_OF_CAP + (may_be_capped and ARGS_OF_RANGE + 3 * COUNT or 0), 'arguments per counter')

-- See extauthz/ledger/caps.py, which says the same in Python, and why no product here is inexact.
local RATE_TOKENS, ROOM_MAX, SHARE_WHOLE = 1000, 2 ^ 40, 1000

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

local function add_slope(hold, i)
  local at = ARGS_OF_CAP + ARGS_OF_RANGE + 3 * (i - FIRST_COUNTER)
  hold.least = ARGV[at + 1] ~= '' and ARGV[at + 1] or nil
  hold.fixed, hold.rate = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
end

local function amount_under(fixed, rate, cap)
  return as_text(fixed + math.ceil(rate * cap / RATE_TOKENS))
end

-- The largest cap whose amount is within the headroom, which is `fixed` at least.
local function room_in(headroom, hold)
  if hold.rate == 0 then
    return ROOM_MAX
  end
  local beyond = headroom - hold.fixed
  local whole = math.floor(beyond / hold.rate)
  local rest = math.floor((beyond - whole * hold.rate) * RATE_TOKENS / hold.rate)
  return math.min(whole * RATE_TOKENS + rest, ROOM_MAX)
end

local function chosen_cap(room)
  local function word(n)
    return tonumber(ARGV[ARGS_OF_CAP + n])
  end
  local most, least, comfort, share, written_max = word(1), word(2), word(3), word(4), word(7)
  share = math.floor(room * share / SHARE_WHOLE)
  local cap = math.min(most, room, math.max(share, comfort, least))
  return cap == most and cap or math.min(cap, written_max)
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

-- Everything that may be overridden in one read: pauses first, then the budgets in order, then the
-- key by which it came in.
local pausable = split(ARGV[4])
local key_field = ARGV[8]
local names = {}
for _, who in ipairs(pausable) do
  names[#names + 1] = 'pause:' .. who
end
local holds = {}
for i = FIRST_COUNTER, #KEYS do
  holds[i] = hold_of(i)
  if may_be_capped then
    add_slope(holds[i], i)
  end
  names[#names + 1] = holds[i].budget_id
end
if key_field ~= '' then
  names[#names + 1] = key_field
end
local overrides = redis.call('HMGET', KEYS[OVERRIDES], unpack(names))

if key_field ~= '' and not record then
  local whose, until_ms = string.match(overrides[#names] or '', '^(%S+)@(%d*) %d+$')
  if whose ~= pausable[1] or not is_before(at_ms, until_ms) then
    return { id, 'key_gone' }
  end
end

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
local room = ROOM_MAX
for i = FIRST_COUNTER, #KEYS do
  local counter, hold = read_counter(KEYS[i], at_ms), holds[i]
  local override = overrides[#pausable + i - FIRST_COUNTER + 1]
  local limit = limit_in_force(override, hold.limit, at_ms)
  reply[#reply + 1] = counter.spent_text
  reply[#reply + 1] = counter.held
  reply[#reply + 1] = limit
  local used = counter.spent + tonumber(counter.held)
  if not record and hold.is_enforcing then
    if used + tonumber(hold.least or hold.amount) > tonumber(limit) then
      reply[2] = 'refused'
    elseif hold.least then
      room = math.min(room, room_in(tonumber(limit) - used, hold))
    end
  end
  if is_out_of_range(counter) then
    out_of_range = out_of_range or KEYS[i]
  end
end
if reply[2] ~= 'reserved' then
  reply[#reply + 1] = may_be_capped and (record and record.cap or '') or nil
  return reply
end
if out_of_range then
  return { id, 'counter_range', out_of_range }
end

local cost, particulars = ARGV[5], ARGV[6]
local fields = { 'state', 'held', 'remember_until', ARGV[7] }
if may_be_capped then
  local cap = chosen_cap(room)
  for i = FIRST_COUNTER, #KEYS do
    if holds[i].rate > 0 then
      holds[i].amount = amount_under(holds[i].fixed, holds[i].rate, cap)
    end
  end
  local of_call = ARGS_OF_CAP + 5
  cost = amount_under(tonumber(ARGV[of_call]), tonumber(ARGV[of_call + 1]), cap)
  if particulars ~= '' then
    particulars = string.sub(particulars, 1, -2) .. ',"estimate_nanousd":"' .. cost
      .. '","output_cap":"' .. as_text(cap) .. '"}'
  end
  reply[#reply + 1] = as_text(cap)
  fields[5], fields[6] = 'cap', as_text(cap)
end
for _, word in ipairs({ 'cost', cost, 'p', particulars }) do
  fields[#fields + 1] = word
end
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
