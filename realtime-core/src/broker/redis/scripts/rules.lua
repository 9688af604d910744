-- KEYS[1]: what hubs go by. ARGV: 1 what this one goes by, 2 since when ('': since now).
-- t when the hub whose rules these are first said them, in microseconds; d the rules.
local since = ARGV[2]
if since == '' then
  local time = redis.call('TIME')
  since = time[1] .. string.format('%06d', time[2])
end
local known = redis.call('HMGET', KEYS[1], 't', 'd')
local said = tonumber(known[1] or '') or 0
if not known[2] or said < tonumber(since) or (known[1] == since and known[2] ~= ARGV[1]) then
  -- Nothing is written where nothing changes: every hub asks every second.
  if known[2] ~= ARGV[1] or not known[1] then redis.call('HSET', KEYS[1], 't', since, 'd', ARGV[1]) end
  known[2] = ARGV[1]
end
return { since, known[2] }
