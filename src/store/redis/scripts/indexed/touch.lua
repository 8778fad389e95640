-- Restarts the time to live of a value that is there, in the index too.
-- KEYS: key, index
-- ARGV: ttl in ms, id
-- Returns the value, or nil if there is none. An error: nothing was written, unless the Redis user may not run one of the
--   commands.
local value = redis.call('GET', KEYS[1])
if not value then return false end
local time = redis.call('TIME')
local expiry = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
redis.call('ZADD', KEYS[2], expiry, ARGV[2])
redis.call('PEXPIREAT', KEYS[1], expiry)
return value
