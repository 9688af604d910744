-- ARGV: 5 number of the change, 6 the user's id ('': nobody), 7 info, 8 connections that the user has through the node,
-- 9 how many more want to come, 10 connections that the channel takes (0: any), 11 bytes that its users may have, 12 grace.
-- Gives how many came, and what kept the others out: 1 the places, 2 the bytes.
open()
sweep(0)
local id, info, base, granted, why = ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), 0
if is_stale(ARGV[5]) then return { meta.e, meta.v, 0, 0, close() } end
local limit = tonumber(ARGV[10])
if limit > 0 and granted > 0 then
  local places = limit - (meta.c - seats(node .. id) + base)
  if granted > places then granted, why = math.max(0, places), 1 end
end
if granted > 0 and id ~= '' and redis.call('HEXISTS', KEYS[2], id) == 0 and meta.b + cost(id, info) > tonumber(ARGV[11]) then
  granted, why = 0, 2
end
put(node, id, info, base + granted, tonumber(ARGV[12]))
lease_seats()
return { meta.e, meta.v, granted, why, close() }
