-- Lists ids, shard by shard, until there are enough.
-- KEYS: indexes of shards
-- ARGV: how many ids are enough; the cursor in the first shard, and the run id of the server that gave the cursor
-- Returns {run id, time in ms, shard, cursor, ids and expiries in ms by turns}. The shard is its number in KEYS, from 0,
--   in which the next page begins; it is the number of KEYS at the end. It writes nothing.
local run_id = redis.call('INFO', 'server'):match('run_id:(%x+)')
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local enough, cursor, found, shard = tonumber(ARGV[1]), ARGV[2], {}, 1
-- A cursor means nothing to another server.
if run_id ~= ARGV[3] then cursor = '0' end
-- Each step looks at a bounded part of the index, and may find nothing there.
local steps = 2 * #KEYS
while shard <= #KEYS and #found < 2 * enough and steps > 0 do
  local reply = redis.call('ZSCAN', KEYS[shard], cursor, 'COUNT', enough - #found / 2)
  cursor, steps = reply[1], steps - 1
  for _, item in ipairs(reply[2]) do found[#found + 1] = item end
  if cursor == '0' then shard = shard + 1 end
end
return {run_id, now, string.format('%.0f', shard - 1), cursor, found}
