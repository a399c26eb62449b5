#!lua flags=allow-oom
-- Be the one that archives the rows of an org, until a moment, and be told how far they are sealed.
--
-- KEYS  1 archive, 2 not used, 3 rows
-- ARGV  1 id, 2 at_ms, 3 holder, 4 until_ms
-- Reply {id, "told", holder, until_ms, through, hash, last, behind, archived}
--                          whoever holds it now; the last row that is sealed, and what the archive's
--                          line of it carries ("0" and "" before the first); the last row of all;
--                          why these books must not be believed, or "", and the last archived row
--                          as whoever found that out knows it, or "0" (see behind.lua)
--       {id, "books_closed"} | {id, "clock_skew"}
--
-- The archive of an org is one hash, without a TTL: `holder`, `until`, `through`, `hash`,
-- and only while rows that are archived are missing here, `behind` and `archived`.
-- allow-oom: what is sealed is trimmed, so it is what makes room in a store that is full.

local id, at_ms, holder, until_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
assert(#ARGV == 4, 'four arguments')
local ARCHIVE = 1

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local standing = redis.call('HMGET', KEYS[ARCHIVE], 'holder', 'until', 'through', 'hash',
  'behind', 'archived')
local held_by, held_until = standing[1] or '', standing[2] or '0'
if held_by == holder or tonumber(held_until) <= tonumber(at_ms) then
  held_by, held_until = holder, until_ms
  redis.call('HSET', KEYS[ARCHIVE], 'holder', holder, 'until', until_ms)
end
local last = '0'
local stream = redis.call('XINFO', 'STREAM', KEYS[ROWS])
for i = 1, #stream, 2 do
  if stream[i] == 'last-generated-id' then
    last = string.match(stream[i + 1], '%-(%d+)$')
  end
end
return {
  id, 'told', held_by, held_until, standing[3] or '0', standing[4] or '', last,
  standing[5] or '', standing[6] or '0',
}
