#!lua flags=allow-oom
-- Move the lease of an open reservation on, never back, and keep the highest cost observed.
--
-- KEYS  1 reservation, 2 leases
-- ARGV  1 id, 2 at_ms, 3 lease_until_ms, 4 the cost observed in nano-USD, then the cost observed on each counter, or nothing
-- Reply {id, "renewed" | "not_open"}
--       {id, "clock_skew"} | {id, "holds_mismatch"}
--
-- allow-oom: an open stream that is not renewed would be charged in full.

local id, at_ms, lease_until_ms = ARGV[1], ARGV[2], ARGV[3]
local observed_nanousd = ARGV[4]
local observed_count = #ARGV - 4
assert(#KEYS == 2, 'two keys')

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
local record = read_record(KEYS[RECORD])
if not record or record.state ~= 'held' then
  return { id, 'not_open' }
end
local is_complete = record['k' .. observed_count] and not record['k' .. (observed_count + 1)]
if observed_count > 0 and not is_complete then
  return { id, 'holds_mismatch' }
end

redis.call('ZADD', KEYS[LEASES], 'GT', lease_until_ms, id)
if tonumber(observed_nanousd) > tonumber(record.seen or '0') then
  redis.call('HSET', KEYS[RECORD], 'seen', observed_nanousd)
end
for i = 1, observed_count do
  local cost = ARGV[4 + i]
  if tonumber(cost) > tonumber(record['o' .. i] or '0') then
    redis.call('HSET', KEYS[RECORD], 'o' .. i, cost)
  end
end
return { id, 'renewed' }
