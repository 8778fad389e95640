-- Removes a value and its place in the index.
-- KEYS: key, index
-- ARGV: id
-- Returns 1 if there was a value, 0 if not. An error: nothing was removed, unless the Redis user may not run one of the
--   commands.
local removed = redis.call('DEL', KEYS[1])
-- The value is gone, so the answer must not be an error any more.
redis.pcall('ZREM', KEYS[2], ARGV[1])
return removed
