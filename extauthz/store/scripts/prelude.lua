-- Shared by every script of the ledger, put between a script's first line and the rest of it.
--
-- Version 1. A script is called by the hash of its text, so two versions of this program that share
-- a store each run their own; say here what changed when a record's layout does.
--
-- A reservation is one hash:
--   state      held | settled | released | expired
--   charged    what each counter carries for it, "120 0 7"       (once it has ended)
--   k1 a1 f1   counter key, amount, forget_at_ms of its 1st hold  (settled: dropped; no k1 at all
--                                       means that it ended without ever having been held here)
--   t1         "1" where nothing is ever spent on the 1st counter
--   o1         highest cost observed so far on the 1st counter
-- A held one has no TTL. Its lease is its score in the leases, there and nowhere else.
-- A counter is a hash of `spent` and `held`; it has a TTL from the command that makes it.
--
-- Amounts are strings of digits from ARGV or from a record and go to HINCRBY as they came. A Lua
-- number is a double, and its text keeps 14 digits: numbers are for comparing only.

local CLOCK_SKEW_MS_MAX = 1000
local COUNTER_MAX = 2 ^ 62
local FIRST_COUNTER = 3 -- KEYS: 1 the reservation, 2 the leases, then its counters in order

-- A caller whose clock is off would pick the wrong windows and leases. This also refuses what lay in
-- the server's input buffer while it was frozen: its caller has given up on it.
local function clock_is_off(at_ms)
  local time = redis.call('TIME')
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  return math.abs(now_ms - tonumber(at_ms)) > CLOCK_SKEW_MS_MAX
end

local function read_record(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then
    return nil
  end
  local record = {}
  for i = 1, #flat, 2 do
    record[flat[i]] = flat[i + 1]
  end
  return record
end

-- The counters of a reservation are those it was reserved on, in that order, and no others.
local function names_its_counters(record)
  local count = #KEYS - FIRST_COUNTER + 1
  for i = 1, count do
    if record['k' .. i] ~= KEYS[FIRST_COUNTER + i - 1] then
      return false
    end
  end
  return record['k' .. (count + 1)] == nil
end

-- HINCRBY counts in 64 bits and fails beyond, which must not happen half-way through a command.
local function first_counter_out_of_range()
  for i = FIRST_COUNTER, #KEYS do
    local balance = redis.call('HMGET', KEYS[i], 'spent', 'held')
    if tonumber(balance[1] or '0') >= COUNTER_MAX or tonumber(balance[2] or '0') >= COUNTER_MAX then
      return KEYS[i]
    end
  end
  return nil
end

-- A counter's TTL is set by the command that makes it and is never shortened.
local function remember_until(key, forget_at_ms)
  if redis.call('PEXPIRETIME', key) < tonumber(forget_at_ms) then
    redis.call('PEXPIREAT', key, forget_at_ms)
  end
end

-- Never below zero, even if the counter was lost meanwhile: that would be room nobody granted.
local function take(key, field, amount)
  if tonumber(amount) > 0 and redis.call('HINCRBY', key, field, '-' .. amount) < 0 then
    redis.call('HSET', key, field, '0')
  end
end

local function split(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do
    words[#words + 1] = word
  end
  return words
end

-- Move what the record holds, or has charged before, to `costs`: one string per counter.
local function move_to(record, costs)
  local charged_before = split(record.charged or '')
  for i, cost in ipairs(costs) do
    local key = KEYS[FIRST_COUNTER + i - 1]
    redis.call('HINCRBY', key, 'spent', cost)
    take(key, 'spent', charged_before[i] or '0')
    if record.state == 'held' then
      take(key, 'held', record['a' .. i])
    end
    remember_until(key, record['f' .. i])
  end
end

-- What is kept of an ended reservation: enough to answer every repeat, until the horizon.
local function write_ended(id, state, record, costs, forget_at_ms)
  local fields = { 'state', state, 'charged', table.concat(costs, ' ') }
  if state ~= 'settled' then -- a settlement may still come, on these counters
    local i = 1
    while record['k' .. i] do
      for _, name in ipairs({ 'k' .. i, 'f' .. i }) do
        fields[#fields + 1] = name
        fields[#fields + 1] = record[name]
      end
      i = i + 1
    end
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('PEXPIREAT', KEYS[1], forget_at_ms)
  redis.call('ZREM', KEYS[2], id)
end

-- The answer to an ending that comes again: the same one, or one that contradicts the first.
local function repeated(id, record, costs)
  local charged, now = record.charged, table.concat(costs, ' ')
  local both_free = not string.find(charged, '[1-9]') and not string.find(now, '[1-9]')
  return { id, (charged == now or both_free) and 'duplicate' or 'conflict', charged }
end
