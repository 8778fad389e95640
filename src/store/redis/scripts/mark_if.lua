-- Writes a value if a condition holds for what is there.
-- KEYS[1]: key
-- ARGV: value, ttl in ms, condition ('' absent present equal), and the expected value in the two forms in which it may
--   be stored: dyndata's own, and another program's (or dyndata's form again)
-- Returns {1, previous value} if the value was written, {0, value} if not. An error: nothing was written.
local condition, previous = ARGV[3], redis.call('GET', KEYS[1])
if condition == 'absent' and previous
    or condition == 'present' and not previous
    or condition == 'equal' and (not previous or previous ~= ARGV[4] and previous ~= ARGV[5]) then
  return {0, previous}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, previous}
