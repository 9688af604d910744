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
      -- Written again, so that who waits for replicas waits for those that have it. It is accepted, even if now it would not be.
      redis.pcall('SET', KEYS[3], known, 'KEEPTTL')
      if state.is_changed then save(state, ARGV[5]) end
      return { state.epoch, offset, 1 }
    end
  end
end
local offset = state.offset + 1
if ARGV[7] ~= '' then
  local now = now_ms()
  if ARGV[10] == '1' then
    local log_ttl = tonumber(ARGV[8])
    local own_ttl = tonumber(ARGV[11])
    local ends = now + math.min(own_ttl or log_ttl, log_ttl)
    local entry = { 'd', ARGV[2], 'n', ARGV[12], 'x', string.format('%d', ends) }
    local is_own = own_ttl and own_ttl < log_ttl
    if is_own then
      entry[7], entry[8] = 'o', '1'
    end
    local id, added = offset .. '-0', nil
    if state.count > 0 then
      added = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', id, unpack(entry))
      if not added then lose_log(state) end
    end
    if not added then added = redis.pcall('XADD', KEYS[2], id, unpack(entry)) end
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'WRONGTYPE') and not string.find(added.err, 'equal or smaller') then return added end
      -- A foreign entry stands above this offset, or the key is no stream: the log begins anew.
      redis.call('DEL', KEYS[2])
      redis.call('XADD', KEYS[2], id, unpack(entry))
      state.floor, state.count, state.bytes, state.log_until = offset - 1, 0, 0, 0
    end
    if not is_own then state.last = offset end
    state.count, state.bytes = state.count + 1, state.bytes + tonumber(ARGV[12])
    if state.count == 1 then state.ends = ends end
    -- The stream as a whole outlives its newest entry by an eighth, which spares saying so each time.
    if state.log_until < now + log_ttl then
      local life = log_ttl + math.ceil(log_ttl / 8)
      redis.call('PEXPIRE', KEYS[2], life)
      state.log_until = now + life
    end
  end
  state.offset = offset
  trim(state, tonumber(ARGV[7]), tonumber(ARGV[9]), now)
else
  state.offset, state.floor, state.last = offset, offset, offset
end
local saved = save(state, ARGV[5])
if saved.err then return saved end
if ARGV[6] ~= '' then
  redis.call('SET', KEYS[3], state.born .. ':' .. offset, 'PX', ARGV[6])
end
redis.call(PUBLISH, ARGV[1], state.epoch .. string.format('%016x', offset) .. ARGV[2])
return { state.epoch, tostring(offset), 0 }
