-- Removes a value and its place in the index if the value is the expected one.
-- KEYS: key, index
-- ARGV: as in ../unmark_if.lua, and the id
-- Returns 1 if the value was removed, 0 if not. An error: nothing was removed, unless the Redis user may not run one of
--   the commands.
local value = redis.call('GET', KEYS[1])
if not value or value ~= ARGV[1] and value ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
-- The value is gone, so the answer must not be an error any more.
redis.pcall('ZREM', KEYS[2], ARGV[3])
return 1
