-- Removes from the index of one shard what has expired: the oldest first, and not all at once.
-- KEYS: index
-- ARGV: how many at most, up to 1000
-- Returns how many were removed.
local time = redis.call('TIME')
local now = string.format('(%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if #expired == 0 then return 0 end
return redis.call('ZREM', KEYS[1], unpack(expired))
