-- Shared by every script of the ledger, put between a script's first line and the rest of it.
--
-- Version 3: rows, particulars, costs, remember_until; several limits in one override. A script is
-- called by the hash of its text, so two versions of this program that share a store each run their
-- own; say here what changed when a record's layout does. From version 3 on it only ever grows: see
-- "Two versions at once" in docs/architecture.md.
--
-- A reservation is one hash:
--   state      held | settled | released | expired
--   charged    what each counter carries for it, "120 0 7"       (once it has ended)
--   k1 a1 f1   counter key, amount, forget_at_ms of its 1st hold  (settled: dropped; no k1 at all
--                                       means that it ended without ever having been held here)
--   t1         "1" where nothing is ever spent on the 1st counter
--   o1         highest cost observed so far on the 1st counter
--   charged_at when its lease ran out                            (expired only)
--   remember_until  until when its ending must be known at least  (held only: then it is in the TTL)
--   cost       nano-USD: the most it can cost (held), or what it was charged (once it has ended)
--   seen       the highest cost observed so far, in nano-USD     (held only)
--   cap        the output cap it was granted under                (held only, and if it may be capped)
--   p          particulars: who asks for what, in words for the books       (not once it is settled)
-- A held one has no TTL. Its lease is its score in the leases, there and nowhere else. An expired one
-- stands in `unconfirmed`, until a settlement confirms or corrects it or its record is forgotten; with
-- it, at +inf, what opened the books, so that no settlement finds that key missing while its slot moves.
-- A counter is a hash of `spent` and `held`; it has a TTL from the command that makes it. One whose
-- key ends in `:rolling-<width in ms>` has, instead of `spent`, an amount for each bucket, named by
-- its number (see extauthz/ledger/rolling.py, which says the same in Python).
--
-- The books of an org are one stream, `rows`, with one row for every ending and every correction; the
-- second part of a row's id is its number, without gaps. A row is written by the same script that
-- changes the counters, or there is no change: a store without the stream has lost its books (or has
-- none yet), and every script refuses to write there. See extauthz/ledger/rows.py for the fields.
--
-- The overrides of an org are one hash: `pause:agent:NAME` and `pause:team:NAME` are "@<until_ms>",
-- or "@" without an end; a budget's id is the words "=<limit>@<until_ms>", in the order of their ends,
-- and "+<top-up>@<until_ms>"; `key:sha256:<hex>` is "agent:NAME@<until_ms> <made_at_ms>".
--
-- No command deletes a key that a later one of the same script needs. While a slot of a Cluster is
-- moved, its old node runs a script whose keys are all there, but refuses every command in it on a
-- key that is gone by then: the script would end half-way.
--
-- Amounts are strings of digits from ARGV or from a record and go to HINCRBY as they came. A Lua
-- number is a double, and its text keeps 14 digits: numbers are for comparing only. Where one has to
-- be written, as_text is exact below 2^53.

local CLOCK_SKEW_MS_MAX = 1000
local COUNTER_MAX = 2 ^ 62
local AMOUNT_MAX = 2 ^ 52
local BUCKETS = 96
-- KEYS of every script that may end a reservation; reserve has the overrides in the fourth place.
local RECORD, LEASES, ROWS, UNCONFIRMED, FIRST_COUNTER = 1, 2, 3, 4, 5

local function as_text(number)
  return string.format('%.0f', number)
end

-- A caller whose clock is off would pick the wrong windows and leases. This also refuses what lay in
-- the server's input buffer while it was frozen: its caller has given up on it.
local function clock_is_off(at_ms)
  local time = redis.call('TIME')
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  return math.abs(now_ms - tonumber(at_ms)) > CLOCK_SKEW_MS_MAX
end

local function books_are_closed()
  return redis.call('EXISTS', KEYS[ROWS]) == 0
end

-- The number of the last row that was ever written, whether it is still here or archived.
local function last_row_seq()
  local stream = redis.call('XINFO', 'STREAM', KEYS[ROWS])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then
      return tonumber(string.match(stream[i + 1], '%-(%d+)$'))
    end
  end
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

-- One row of the books. `words` are at_ms, outcome, id, cost, and where they apply cost_before,
-- claimed, particulars; `postings` are lists of equal length, as texts: the counters it is about, what
-- they held for it, what they carry for it now and before, and when they may be forgotten. Only the
-- row that opens the books says which number it has.
local function write_row(words, postings, first)
  local of_org = #KEYS[ROWS] - #'rows' -- every key of an org begins alike
  local names = {}
  for i, key in ipairs(postings.counters or {}) do
    names[i] = string.sub(key, of_org + #'c:' + 1)
  end
  local function list(values)
    return table.concat(values or {}, ' ')
  end
  local row = {
    'XADD', KEYS[ROWS], 'NOMKSTREAM', '0-*',
    'at', words.at_ms, 'outcome', words.outcome, 'id', words.id,
    'cost', words.cost or '0', 'cost_before', words.cost_before or '0',
    'claimed', words.claimed or '', 'charged_at', words.charged_at or words.at_ms,
    'counters', table.concat(names, '\n'), 'held', list(postings.held),
    'charged', list(postings.charged), 'before', list(postings.before),
    'forget', list(postings.forget), 'particulars', words.particulars or '',
  }
  if first then
    table.remove(row, 3)
    row[3] = '0-' .. first
  end
  redis.call(unpack(row))
end

local function width_of(key)
  return tonumber(string.match(key, ':rolling%-(%d+)$'))
end

local function bucket_at(at_ms, width)
  return math.floor(tonumber(at_ms) / width)
end

-- A counter as it stands: held, spent as a number, and spent as text, which is exact: the amounts of
-- the buckets that count, for the caller to add up.
local function read_counter(key, at_ms)
  local width = width_of(key)
  if not width then
    local balance = redis.call('HMGET', key, 'spent', 'held')
    local spent = balance[1] or '0'
    return { spent = tonumber(spent), spent_text = spent, held = balance[2] or '0' }
  end
  local oldest = bucket_at(at_ms, width) - BUCKETS + 1
  local flat, sum, amounts, held = redis.call('HGETALL', key), 0, {}, '0'
  for i = 1, #flat, 2 do
    if flat[i] == 'held' then
      held = flat[i + 1]
    elseif tonumber(flat[i]) >= oldest then
      sum = sum + tonumber(flat[i + 1])
      amounts[#amounts + 1] = flat[i + 1]
    end
  end
  return { spent = sum, spent_text = table.concat(amounts, ' '), held = held }
end

local function is_out_of_range(counter)
  return counter.spent >= COUNTER_MAX or tonumber(counter.held) >= COUNTER_MAX
end

-- HINCRBY counts in 64 bits and fails beyond, which must not happen half-way through a command.
local function first_counter_out_of_range(at_ms)
  for i = FIRST_COUNTER, #KEYS do
    if is_out_of_range(read_counter(KEYS[i], at_ms)) then
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

-- What is done with every write to a rolling counter: buckets that have left the window go, and it is
-- remembered until what is spent now has left, too.
local function tidy_rolling(key, at_ms)
  local width = width_of(key)
  if not width then
    return
  end
  remember_until(key, as_text(tonumber(at_ms) + BUCKETS * width))
  local oldest = bucket_at(at_ms, width) - BUCKETS + 1
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if name ~= 'held' and tonumber(name) < oldest then
      redis.call('HDEL', key, name) -- last: a counter made anew by a late cost may have nothing else
    end
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

-- Correct the bucket that was charged. Where that has left the window, there is nothing to give back,
-- and what is still to be charged goes to the bucket of now.
local function correct(key, width, at_ms, charged_at_ms, change)
  local now = bucket_at(at_ms, width)
  local bucket = bucket_at(charged_at_ms, width)
  if bucket <= now - BUCKETS then
    bucket, change = now, math.max(0, change)
  end
  if change ~= 0 and redis.call('HINCRBY', key, as_text(bucket), as_text(change)) < 0 then
    redis.call('HSET', key, as_text(bucket), '0')
  end
end

-- Move what the record holds, or has charged before, to `costs`: one string per counter. Returns the
-- postings of the row that tells so.
local function move_to(record, costs, at_ms)
  local charged_before = split(record.charged or '')
  local postings = { counters = {}, held = {}, charged = costs, before = {}, forget = {} }
  for i, cost in ipairs(costs) do
    local key = KEYS[FIRST_COUNTER + i - 1]
    local before = charged_before[i] or '0'
    local width = width_of(key)
    if width then
      -- Two amounts up to 2^52: their difference is exact.
      local change = tonumber(cost) - tonumber(before)
      correct(key, width, at_ms, record.charged_at or at_ms, change)
    else
      redis.call('HINCRBY', key, 'spent', cost)
      take(key, 'spent', before)
    end
    if record.state == 'held' then
      take(key, 'held', record['a' .. i])
    end
    remember_until(key, record['f' .. i])
    tidy_rolling(key, at_ms)
    postings.counters[i], postings.before[i], postings.forget[i] = key, before, record['f' .. i]
    postings.held[i] = record.state == 'held' and record['a' .. i] or '0'
  end
  return postings
end

-- What is kept of an ended reservation: enough to answer every repeat, until the horizon. Whatever
-- horizon this command was told, it is not remembered shorter than its call's own asks for.
local function write_ended(id, state, record, costs, cost, forget_at_ms, charged_at_ms)
  local fields = { 'state', state, 'charged', table.concat(costs, ' '), 'cost', cost }
  if charged_at_ms then
    fields[#fields + 1] = 'charged_at'
    fields[#fields + 1] = charged_at_ms
  end
  if state ~= 'settled' then -- a settlement may still come, on these counters
    if record.p then
      fields[#fields + 1] = 'p'
      fields[#fields + 1] = record.p
    end
    local i = 1
    while record['k' .. i] do
      for _, name in ipairs({ 'k' .. i, 'f' .. i }) do
        fields[#fields + 1] = name
        fields[#fields + 1] = record[name]
      end
      i = i + 1
    end
  end
  local at_least_ms = record.remember_until or '0'
  if record.state == 'expired' then
    redis.call('ZREM', KEYS[UNCONFIRMED], id)
  end
  redis.call('HSET', KEYS[RECORD], unpack(fields))
  for i = 1, #fields, 2 do
    record[fields[i]] = nil
  end
  for name in pairs(record) do -- what is not kept; a DEL before the HSET would be shorter
    redis.call('HDEL', KEYS[RECORD], name)
  end
  if tonumber(at_least_ms) > tonumber(forget_at_ms) then
    forget_at_ms = at_least_ms
  end
  remember_until(KEYS[RECORD], forget_at_ms)
  redis.call('ZREM', KEYS[LEASES], id)
end

-- The answer to an ending that comes again: the same one, or one that contradicts the first, which
-- is written down and changes nothing.
local function repeated(id, at_ms, record, costs, cost, particulars)
  local charged, now = record.charged, table.concat(costs, ' ')
  local both_free = not string.find(charged, '[1-9]') and not string.find(now, '[1-9]')
  if record.cost == cost and (charged == now or both_free) then
    return { id, 'duplicate', charged }
  end
  write_row({
    at_ms = at_ms, outcome = 'conflict', id = id, cost = record.cost, cost_before = record.cost,
    claimed = cost, particulars = particulars,
  }, {})
  return { id, 'conflict', charged }
end

-- Whether an end, as it is written, is still to come; '' is none.
local function is_before(at_ms, until_ms)
  return until_ms == '' or tonumber(at_ms) < tonumber(until_ms)
end

local function later_end(one, other)
  if one == '' or other == '' then
    return ''
  end
  return tonumber(one) > tonumber(other) and one or other
end

-- The words of a budget's override that hold: each {sign, amount, until_ms}.
local function parts_in_force(text, at_ms)
  local parts = {}
  for sign, amount, until_ms in string.gmatch(text or '', '([=+])(%d+)@(%d*)') do
    if is_before(at_ms, until_ms) then
      parts[#parts + 1] = { sign = sign, amount = amount, until_ms = until_ms }
    end
  end
  return parts
end

-- The limit that applies, as text: the first of those that are set, else the file's, and the top-ups.
local function limit_in_force(text, limit, at_ms)
  if not text then
    return limit
  end
  local base, more = nil, 0
  for _, part in ipairs(parts_in_force(text, at_ms)) do
    if part.sign == '+' then
      more = more + tonumber(part.amount)
    else
      base = base or tonumber(part.amount)
    end
  end
  return as_text(math.min((base or tonumber(limit)) + more, AMOUNT_MAX))
end
