-- Counts the ids of one shard, and removes from its index what has expired: the oldest first, and not all at once.
-- KEYS: index
-- ARGV: how many at most, up to 1000
-- Returns how many were removed, and how many ids are marked now.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local marked = redis.call('ZCOUNT', KEYS[1], now, '+inf')
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now, 'LIMIT', 0, ARGV[1])
if #expired == 0 then return {0, marked} end
return {redis.call('ZREM', KEYS[1], unpack(expired)), marked}
