-- Writes a value and its place in the index if a condition holds for what is there.
-- KEYS: key, index
-- ARGV: as in ../mark_if.lua, and the id
-- Returns what ../mark_if.lua returns. An error: nothing was written, unless the Redis user may not run one of the
--   commands.
local condition, previous = ARGV[3], redis.call('GET', KEYS[1])
if condition == 'absent' and previous
    or condition == 'present' and not previous
    or condition == 'equal' and (not previous or previous ~= ARGV[4] and previous ~= ARGV[5]) then
  return {0, previous}
end
local time = redis.call('TIME')
local expiry = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
redis.call('ZADD', KEYS[2], expiry, ARGV[6])
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', expiry)
return {1, previous}
