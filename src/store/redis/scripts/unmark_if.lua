-- Removes a value if it is the expected one.
-- KEYS[1]: key
-- ARGV: the expected value in the two forms in which it may be stored, as in mark_if.lua
-- Returns 1 if the value was removed, 0 if not. An error: nothing was removed.
local value = redis.call('GET', KEYS[1])
if not value or value ~= ARGV[1] and value ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
return 1
