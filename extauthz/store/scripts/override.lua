#!lua flags=allow-oom
-- Change a limit, pause somebody, or say whose a virtual key is, once.
--
-- KEYS  1 this override's own id, 2 overrides, 3 rows
-- ARGV  1 id, 2 at_ms, 3 when to forget the id, 4 what it says, as one text,
--       5 change: set | top-up | unset | pause | resume | admit | revoke, 6 field, 7 amount,
--       8 until_ms or nothing, 9 particulars, 10 target, which for admit is whose the key is
-- Reply {id, "applied" | "duplicate" | "conflict"}
--       {id, "books_closed"} | {id, "clock_skew"}
--
-- allow-oom: it may be what stops an agent.

local LIMITS_MAX = 8 -- as in extauthz/ledger/overrides.py
local id, at_ms, forget_at_ms, content = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local change, field, amount, until_ms = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
assert(#ARGV == 10, 'ten arguments')
local OWN_ID, OVERRIDES = 1, 2

-- Whether an end, as it is written, comes after another; '' is none.
local function ends_after(one, other)
  return other ~= '' and (one == '' or tonumber(one) > tonumber(other))
end

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local said_before = redis.call('GET', KEYS[OWN_ID])
if said_before == content then
  -- Written again as it stands: only of what this connection writes can WAIT say that replicas have
  -- it, and then they have all that came before.
  redis.call('SET', KEYS[OWN_ID], content, 'KEEPTTL')
  return { id, 'duplicate' }
elseif said_before then
  return { id, 'conflict' }
end
redis.call('SET', KEYS[OWN_ID], content, 'PXAT', forget_at_ms)

local text = redis.call('HGET', KEYS[OVERRIDES], field)
if change == 'pause' and text then
  until_ms = later_end(until_ms, string.sub(text, 2)) -- only a resume lets anybody in earlier
end
-- The words that are kept beside the new one, which comes last, or first if it sets the limit.
local words = {}
for _, part in ipairs(parts_in_force(text, at_ms)) do
  if change == 'set' and (part.sign == '+' or not ends_after(part.until_ms, until_ms)) then
    part = nil -- a limit that is set leaves no top-ups, and only limits that end after it
  elseif change == 'top-up' and part.sign == '+' and part.until_ms == until_ms then
    amount = as_text(math.min(tonumber(amount) + tonumber(part.amount), AMOUNT_MAX))
    part = nil -- those that end together are one
  end
  if part then
    words[#words + 1] = part.sign .. part.amount .. '@' .. part.until_ms
  end
end
local ending = '@' .. until_ms
if change == 'set' then
  while #words >= LIMITS_MAX do
    table.remove(words, 1)
  end
  table.insert(words, 1, '=' .. amount .. ending)
elseif change == 'top-up' then
  words[#words + 1] = '+' .. amount .. ending
elseif change == 'pause' then
  words = { ending }
elseif change == 'admit' then
  words = { ARGV[10] .. ending, text and string.match(text, ' (%d+)$') or at_ms }
else
  words = {}
end
if #words == 0 then
  redis.call('HDEL', KEYS[OVERRIDES], field)
else
  redis.call('HSET', KEYS[OVERRIDES], field, table.concat(words, ' '))
end
write_row({ at_ms = at_ms, outcome = 'override', id = id, particulars = ARGV[9] }, {})
return { id, 'applied' }
