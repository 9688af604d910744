-- ARGV: 5 connections that the node has ('': it does not know just now), 6 fenced, 7 how far ahead graces end.
-- Gives whether what is known of the node is what it has.
open()
if ARGV[6] == '1' then
  -- What a replica did not get before it took over is gone, or back: every node says again what it has.
  local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
  local before = redis.call('HGET', KEYS[1], 'r')
  if before and before ~= server then meta.e = ARGV[2] end
  if before ~= server then redis.call('HSET', KEYS[1], 'r', server) end
end
sweep(tonumber(ARGV[7]))
local intact, known = 1, seats('#' .. node)
if ARGV[5] ~= '' and (known ~= tonumber(ARGV[5]) or (known > 0 and not redis.call('ZSCORE', KEYS[4], 'n' .. node))) then intact = 0 end
if intact == 1 then lease_seats() end
return { meta.e, meta.v, intact, meta.u, close() }
