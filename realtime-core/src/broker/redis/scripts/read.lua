-- ARGV: 1 candidate for an epoch, 2 fenced, 3 life of the meta, 4 first and 5 last offset, 6 how many
-- (-1: only the channel's state), 7 how many bytes, 8 whether the newest come first, 9 life of the meta while
-- there has been no publication.
local state = open(ARGV[1], ARGV[2])
if state.count > 0 and redis.call('EXISTS', KEYS[2]) == 0 then lose_log(state) end
local limit, bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local entries, more, taken = {}, 0, 0
local now = now_ms()
trim(state, math.huge, math.huge, now)
if limit >= 0 then
  local first, last = ARGV[4], ARGV[5]
  -- What stands behind the newest is not the hubs'.
  if last == '+' or tonumber(last) > state.offset then last = string.format('%d', state.offset) end
  local done = false
  while not done do
    local part
    if ARGV[8] == '1' then
      part = redis.pcall('XREVRANGE', KEYS[2], last, first, 'COUNT', 64)
    else
      part = redis.pcall('XRANGE', KEYS[2], first, last, 'COUNT', 64)
    end
    if part.err then
      lose_log(state)
      part = {}
    end
    for _, entry in ipairs(part) do
      local named = fields(entry)
      local offset = string.match(entry[1], '^(%d+)%-0$')
      if not offset then
        -- Nor is this.
      elseif (tonumber(named.x or '') or 0) > now then
        if #entries >= limit or (taken >= bytes and #entries > 0) then
          more, done = 1, true
          break
        end
        entries[#entries + 1] = { offset, named.d or '' }
        taken = taken + #(named.d or '')
      elseif not named.o then
        state.floor = math.max(state.floor, tonumber(offset))
      end
    end
    if #part < 64 then done = true end
    if not done then
      if ARGV[8] == '1' then last = '(' .. part[#part][1] else first = '(' .. part[#part][1] end
    end
  end
end
-- Anybody can make a name up: it is forgotten unless somebody stays, whose hub looks again and again.
local life = state.offset > 0 and ARGV[3] or ARGV[9]
local saved = {}
if state.is_changed then saved = save(state, life) else redis.pcall('PEXPIRE', KEYS[1], life) end
-- Only an epoch must be kept; whoever reads next finds the rest again.
if saved.err and state.is_named then return saved end
return { state.epoch, tostring(state.offset), tostring(state.floor), more, entries }
