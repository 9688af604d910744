-- ARGV: 1 channel to publish on, 2 envelope, 3 candidate for an epoch, 4 fenced, 5 life of the meta,
-- 6 life of an idempotency key ('': there is none), 7 size ('': nothing is kept), 8 ttl, 9 bytes,
-- 10 whether this one is kept, 11 its own ttl ('': none), 12 what it costs. KEYS[3]: the key's name.
local state = open(ARGV[3], ARGV[4])
if ARGV[6] ~= '' then
  local known = redis.call('GET', KEYS[3])
  if known then
    -- Only while the channel counts on: else the position would be one of nothing.
    local born, offset = string.match(known, '^(%x+):(%d+)$')
    if born and state.born == born then
      -- Written again, so that who waits for replicas waits for those that have it.
      redis.call('SET', KEYS[3], known, 'KEEPTTL')
      return { state.epoch, offset, 1 }
    end
  end
end
local offset = redis.call('HINCRBY', KEYS[1], 'o', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if ARGV[7] ~= '' then
  local now = now_ms()
  if ARGV[10] == '1' then
    local entry = { 'd', ARGV[2], 'n', ARGV[12] }
    local ttl = tonumber(ARGV[8])
    if ARGV[11] ~= '' and tonumber(ARGV[11]) < ttl then
      ttl = tonumber(ARGV[11])
      entry[#entry + 1] = 'o'
      entry[#entry + 1] = 1
    else
      redis.call('HSET', KEYS[1], 'l', offset)
    end
    entry[#entry + 1] = 'x'
    entry[#entry + 1] = string.format('%.0f', now + ttl)
    if offset == 1 then redis.call('DEL', KEYS[2]) end
    local added = redis.pcall('XADD', KEYS[2], offset .. '-0', unpack(entry))
    if type(added) == 'table' and added.err then
      -- A foreign entry stands above this offset, or the key is no stream: the log begins anew.
      redis.call('DEL', KEYS[2])
      redis.call('XADD', KEYS[2], offset .. '-0', unpack(entry))
      state.floor, state.bytes = offset - 1, 0
      redis.call('HSET', KEYS[1], 'f', state.floor)
    end
    redis.call('PEXPIRE', KEYS[2], ARGV[8])
    state.bytes = state.bytes + tonumber(ARGV[12])
    redis.call('HSET', KEYS[1], 'b', state.bytes)
  end
  trim(state, tonumber(ARGV[7]), tonumber(ARGV[9]), now)
else
  redis.call('HSET', KEYS[1], 'f', offset, 'l', offset)
end
if ARGV[6] ~= '' then
  redis.call('SET', KEYS[3], state.born .. ':' .. offset, 'PX', ARGV[6])
end
redis.call('PUBLISH', ARGV[1], state.epoch .. string.format('%016x', offset) .. ARGV[2])
return { state.epoch, tostring(offset), 0 }
