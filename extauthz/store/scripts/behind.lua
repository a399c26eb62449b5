#!lua flags=allow-oom
-- Say in the store that its books lack rows that are archived, for all who share it; or that they do
-- not any more.
--
-- KEYS  1 archive (see claim.lua)
-- ARGV  1 id, 2 at_ms, 3 the last row that is archived, 4 what is wrong ('': nothing any more)
-- Reply {id, "noted"}
--       {id, "clock_skew"}
--
-- Also where there are no books: whoever starts on such a store must not begin them anew (open.lua).
-- allow-oom: it is what stops calls.

local id, at_ms, archived, behind = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
assert(#ARGV == 4, 'four arguments')
local ARCHIVE = 1

if clock_is_off(at_ms) then
  return { id, 'clock_skew' }
end
if behind == '' then
  redis.call('HDEL', KEYS[ARCHIVE], 'behind', 'archived')
else
  redis.call('HSET', KEYS[ARCHIVE], 'behind', behind, 'archived', archived)
end
return { id, 'noted' }
