-- Before both scripts. KEYS[1] is the channel's meta, KEYS[2] its log.
-- meta: e epoch, g epoch in which the counting began, o newest offset, f floor, l newest offset that
-- was kept and has no life of its own, b bytes in the log, r replication id of the server that counted last.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The channel's state. It begins anew where nothing is known. When fenced, another server than before
-- goes on with what it has in a new epoch: a replica that has taken over may have missed the newest
-- offsets, and will give them out again.
local function open(candidate, fenced)
  local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 'f', 'l', 'b', 'r', 'g')
  local server = ''
  if fenced == '1' then
    server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
  end
  local offset = tonumber(meta[2] or '')
  if not meta[1] or not offset or #meta[1] ~= 16 then
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], 'e', candidate, 'g', candidate, 'o', 0, 'f', 0, 'l', 0, 'b', 0, 'r', server)
    return { epoch = candidate, born = candidate, offset = 0, floor = 0, last = 0, bytes = 0 }
  end
  if fenced == '1' and meta[6] ~= server then
    meta[1] = candidate
    redis.call('HSET', KEYS[1], 'e', candidate, 'r', server)
  end
  local state = {
    epoch = meta[1], born = meta[7] or '', offset = offset, floor = tonumber(meta[3] or '') or offset, last = tonumber(meta[4] or '') or offset,
    bytes = tonumber(meta[5] or '') or 0,
  }
  -- The log has expired, or was evicted.
  if state.last > state.floor and redis.call('EXISTS', KEYS[2]) == 0 then
    state.floor = state.last
    state.bytes = 0
    redis.call('HSET', KEYS[1], 'f', state.floor, 'b', 0)
  end
  return state
end

local function fields(entry)
  local list, named = entry[2], {}
  for at = 1, #list, 2 do named[list[at]] = list[at + 1] end
  return named
end

-- Drops the oldest entries while they are too old, too many or too large.
local function trim(state, size, bytes, now)
  local length = redis.call('XLEN', KEYS[2])
  local before = state.floor .. ':' .. state.bytes
  while length > 0 do
    local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
    local named = fields(oldest)
    local old = (tonumber(named.x or '') or 0) <= now
    if not old and length <= size and state.bytes <= bytes then break end
    redis.call('XDEL', KEYS[2], oldest[1])
    length = length - 1
    state.bytes = math.max(0, state.bytes - (tonumber(named.n or '') or 0))
    if not (old and named.o) then
      state.floor = math.max(state.floor, tonumber(string.match(oldest[1], '^%d+')))
    end
  end
  if before ~= state.floor .. ':' .. state.bytes then
    redis.call('HSET', KEYS[1], 'f', state.floor, 'b', state.bytes)
  end
end
