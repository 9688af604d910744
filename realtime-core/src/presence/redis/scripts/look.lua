-- ARGV: 5 what is wanted: 'all', 'one', 'number'; 6 bytes at most, or the one's id. Gives users as id, info and connections,
-- and how many were left out.
open()
sweep(0)
local users, left_out = {}, 0
if ARGV[5] == 'one' then
  local info = redis.call('HGET', KEYS[2], ARGV[6])
  if info then users[1] = { ARGV[6], info, seats('+' .. ARGV[6]) } end
elseif ARGV[5] == 'all' then
  local room = tonumber(ARGV[6])
  if meta.u * 16 > room then
    left_out = meta.u
  else
    local list = redis.call('HGETALL', KEYS[2])
    for at = 1, #list, 2 do
      room = room - #list[at] - #list[at + 1]
      if room >= 0 then
        users[#users + 1] = { list[at], list[at + 1], seats('+' .. list[at]) }
      else
        left_out = left_out + 1
      end
    end
  end
end
return { meta.e, meta.v, meta.u, left_out, users, close() }
