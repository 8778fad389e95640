-- Counts the ids that are marked now.
-- KEYS: indexes of shards
-- Returns the number of ids whose expiry has not passed. Redis keeps a value during the whole millisecond of its expiry,
--   so that one counts. It reads and writes nothing else.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local count = 0
for _, index in ipairs(KEYS) do count = count + redis.call('ZCOUNT', index, now, '+inf') end
return count
