#!lua flags=allow-oom
-- Trim rows that are archived, and keep how far they are and what the last of them proves.
--
-- KEYS  1 archive (see claim.lua), 2 not used, 3 rows
-- ARGV  1 id, 2 at_ms, 3 holder, 4 until_ms, 5 the last row that was sealed before,
--       6 the last row that is archived now, 7 what the archive's line of it carries
-- Reply {id, "sealed"}
--       {id, "not_holder"}   another one archives them; nothing was changed
--       {id, "moved"}        they were sealed up to another row; nothing was changed
--       {id, "behind"}       there are no such rows here yet; nothing was changed
--       {id, "books_closed"} | {id, "clock_skew"}
--
-- allow-oom: it makes room.

local id, at_ms, holder, until_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local before, through, hash = ARGV[5], ARGV[6], ARGV[7]
assert(#ARGV == 7, 'seven arguments')
local ARCHIVE = 1

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if books_are_closed() then
  return { id, 'books_closed' }
end
local standing = redis.call('HMGET', KEYS[ARCHIVE], 'holder', 'through')
if standing[1] ~= holder then
  return { id, 'not_holder' }
end
if (standing[2] or '0') ~= before then
  return { id, 'moved' }
end
if last_row_seq() < tonumber(through) then
  return { id, 'behind' }
end
redis.call('HSET', KEYS[ARCHIVE], 'until', until_ms, 'through', through, 'hash', hash)
-- A stream that is empty stays, and goes on to count where it was.
redis.call('XTRIM', KEYS[ROWS], 'MINID', '0-' .. as_text(tonumber(through) + 1))
return { id, 'sealed' }
