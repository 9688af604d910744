-- Before both scripts. KEYS[1] is the channel's meta, KEYS[2] its log. Every call costs a publication
-- its time, so the meta is one string that says what would have to be asked for, and `save` writes it.
-- meta: epoch, epoch in which the counting began, replication id of the server that counted last ('-':
-- not fenced), then the numbers: newest offset, floor, newest offset that was kept and has no life of its
-- own, entries in the log, their bytes, when the oldest one ends and until when the log lives at least
-- (ms since 1970).

local META = '^(%x+) (%x+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The log has expired, or was evicted: then entries with a shorter life of their own have gone before it was over.
local function lose_log(state)
  state.floor = math.max(state.floor, now_ms() < state.log_until and state.offset or state.last)
  state.count, state.bytes, state.log_until, state.is_changed = 0, 0, 0, true
end

-- The channel's state. It begins anew where nothing is known. When fenced, another server than before
-- goes on with what it has in a new epoch: a replica that has taken over may have missed the newest
-- offsets, and will give them out again.
local function open(candidate, fenced)
  local server = '-'
  if fenced == '1' then
    local info = redis.call('INFO', 'replication')
    local _, at = string.find(info, 'master_replid:', 1, true)
    server = at and string.match(info, '^%x+', at + 1) or '-'
  end
  local meta = redis.pcall('GET', KEYS[1])
  local epoch, born, before, offset, floor, last, count, bytes, ends, log_until
  if type(meta) == 'string' and #meta <= 200 then
    epoch, born, before, offset, floor, last, count, bytes, ends, log_until = string.match(meta, META)
  end
  -- Lua writes numbers of 14 digits exactly; longer ones no hub has written.
  if not epoch or #epoch ~= 16 or #offset > 13 or string.find(meta, '%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d', #epoch + #born + #before + 3)
    or tonumber(floor) > tonumber(offset) or tonumber(last) > tonumber(offset) then
    redis.call('DEL', KEYS[1], KEYS[2])
    return {
      epoch = candidate, born = candidate, server = server, is_changed = true, is_named = true,
      offset = 0, floor = 0, last = 0, count = 0, bytes = 0, ends = 0, log_until = 0,
    }
  end
  local state = {
    epoch = epoch, born = born, server = before, is_changed = false,
    offset = tonumber(offset), floor = tonumber(floor), last = tonumber(last),
    count = tonumber(count), bytes = tonumber(bytes), ends = tonumber(ends), log_until = tonumber(log_until),
  }
  if fenced == '1' and before ~= server then
    state.epoch, state.server, state.is_changed, state.is_named = candidate, server, true, true
  end
  return state
end

-- What it refuses is the server's to say: too few replicas, no memory, a disk that fails.
local function save(state, life)
  local numbers = string.format('%d %d %d %d %d %d %d', state.offset, state.floor, state.last, state.count, state.bytes, state.ends, state.log_until)
  return redis.pcall('SET', KEYS[1], state.epoch .. ' ' .. state.born .. ' ' .. state.server .. ' ' .. numbers, 'PX', life)
end

local function fields(entry)
  local list, named = entry[2], {}
  for at = 1, #list, 2 do named[list[at]] = list[at + 1] end
  return named
end

-- Drops the oldest entries while they are too old, too many or too large.
local function trim(state, size, bytes, now)
  local function is_within() return state.count <= size and state.bytes <= bytes end
  if state.count == 0 or (state.ends > now and is_within()) then return end
  state.is_changed = true
  -- Most often one goes, for the newest one.
  local from, chunk, dropped = '-', 1, nil
  repeat
    local part = redis.pcall('XRANGE', KEYS[2], from, '+', 'COUNT', chunk)
    if part.err or (#part == 0 and not dropped) then return lose_log(state) end
    for _, entry in ipairs(part) do
      local named = fields(entry)
      local ends = tonumber(named.x or '') or 0
      local is_old = ends <= now
      if not is_old and is_within() then
        state.ends = ends
        if dropped then redis.pcall('XTRIM', KEYS[2], 'MINID', entry[1]) end
        return
      end
      dropped = math.min(tonumber(string.match(entry[1], '^%d+')), state.offset)
      state.count = math.max(0, state.count - 1)
      state.bytes = math.max(0, state.bytes - (tonumber(named.n or '') or 0))
      if not (is_old and named.o) then state.floor = math.max(state.floor, dropped) end
      if not is_old and state.count > 0 and is_within() then
        -- The next one ends later, or is left out by who reads: no need to look at it.
        state.ends = ends
        redis.pcall('XTRIM', KEYS[2], 'MINID', (dropped + 1) .. '-0')
        return
      end
      from = '(' .. entry[1]
    end
    local is_more = #part == chunk
    chunk = 64
  until not is_more
  redis.pcall('DEL', KEYS[2])
  -- What was counted and not found is missing too.
  state.floor = math.max(state.floor, state.last)
  state.count, state.bytes, state.log_until = 0, 0, 0
end
