-- Adds to a number, and writes its place in the index.
-- KEYS: key, index
-- ARGV: as in ../increment.lua, and the id
-- Returns what ../increment.lua returns. An error: nothing was written, unless the Redis user may not run one of the
--   commands.
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
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The expiry for the index, and the ms left.
local function current()
  local ms = redis.call('PTTL', KEYS[1])
  if ms < 0 then return '+inf', '' end
  return string.format('%.0f', now + ms), string.format('%.0f', ms)
end
if less(old, ARGV[4]) or less(ARGV[5], old) then
  local _, left = current()
  return {0, old, left}
end
local keep = value and ARGV[3] == 'KEEP'
local expiry, left = string.format('%.0f', now + ARGV[2]), ARGV[2]
if keep then
  expiry, left = current()
  redis.call('ZADD', KEYS[2], 'NX', expiry, ARGV[6])
else
  redis.call('ZADD', KEYS[2], expiry, ARGV[6])
end
-- A new number gets its expiry first: a number without an expiry would stay for ever if a later command were refused.
if not value then redis.call('SET', KEYS[1], '0', 'PXAT', expiry) end
redis.call('INCRBY', KEYS[1], ARGV[1])
if value and not keep then redis.call('PEXPIREAT', KEYS[1], expiry) end
return {1, redis.call('GET', KEYS[1]), left}
