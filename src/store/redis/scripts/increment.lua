-- Adds to a number.
-- KEYS[1]: key
-- ARGV: delta, ttl in ms, policy (RESTART KEEP), and the least and the greatest number that the increment changes
-- Returns {1, new number, ms left}; {0, number, ms left} if the number is outside that range and stays; {-1} if the
--   value is not an integer. The ms left are '' without an expiry.
-- All numbers are decimal strings, because Lua's numbers are doubles. An error: nothing was written, unless the Redis
-- user may not run one of the commands.
local function less(a, b)
  local a_negative, b_negative = a:byte() == 45, b:byte() == 45
  if a_negative ~= b_negative then return a_negative end
  if a_negative then a, b = b:sub(2), a:sub(2) end
  if #a ~= #b then return #a < #b end
  return a < b
end
local value = redis.call('GET', KEYS[1])
local old = value or '0'
if old ~= '0' and not old:find('^%-?[1-9]%d*$')
    or less(old, '-9223372036854775808') or less('9223372036854775807', old) then
  return {-1}
end
local function left()
  local ms = redis.call('PTTL', KEYS[1])
  return ms < 0 and '' or string.format('%.0f', ms)
end
if less(old, ARGV[4]) or less(ARGV[5], old) then return {0, old, left()} end
-- A new number gets its expiry first: a number without an expiry would stay for ever if a later command were refused.
if not value then redis.call('SET', KEYS[1], '0', 'PX', ARGV[2]) end
redis.call('INCRBY', KEYS[1], ARGV[1])
local new = redis.call('GET', KEYS[1])
if value and ARGV[3] == 'KEEP' then return {1, new, left()} end
if value then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {1, new, ARGV[2]}
