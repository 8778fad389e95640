-- Writes a value and its place in the index.
-- KEYS: key, index
-- ARGV: value, ttl in ms, id
-- Returns 'OK'. An error: nothing was written, because ZADD is the only command that can fail, unless the Redis user may
--   not run one of the commands.
local time = redis.call('TIME')
local expiry = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
redis.call('ZADD', KEYS[2], expiry, ARGV[3])
return redis.call('SET', KEYS[1], ARGV[1], 'PXAT', expiry)
