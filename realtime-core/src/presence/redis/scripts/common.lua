-- Before every script of presence. KEYS: 1 meta, 2 users, 3 seats, 4 due. ARGV: 1 topic of the notices, 2 candidate for an
-- epoch, 3 the asking node, 4 life of a lease in milliseconds.
-- meta: e epoch, v version of the newest notice, c connections, b bytes of the users, u how many, r server that counted last.
-- users: info by id. seats: NODE..ID connections of a user through a node (ID '': of nobody), '+'..ID all of a user's,
-- '#'..NODE all of a node's, '@'..NODE number of the node's newest change. due: 'n'..NODE end of a lease, 'g'..ID of a grace.
-- Times are this server's: no two hosts' clocks are compared.
local topic, node, lease = ARGV[1], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local life = 3 * lease
local meta

local function count(text)
  local number = tonumber(text or '') or 0
  if number >= 0 and number < 2 ^ 53 and number == math.floor(number) then return number end
  return 0
end

local function seats(field) return count(redis.call('HGET', KEYS[3], field)) end

-- What is known of the channel. Where that contradicts itself (a key was evicted, or somebody else wrote) it begins anew, in
-- another epoch: then every node puts back what it has.
local function open()
  local found = redis.call('HMGET', KEYS[1], 'e', 'v', 'c', 'b', 'u')
  meta = { e = found[1], v = count(found[2]), c = count(found[3]), b = count(found[4]), u = count(found[5]) }
  if not meta.e or not string.match(meta.e, '^%x+$') or #meta.e ~= 16 or meta.u ~= redis.call('HLEN', KEYS[2])
    or (meta.c > 0 and redis.call('EXISTS', KEYS[3], KEYS[4]) ~= 2) then
    redis.call('DEL', unpack(KEYS))
    meta = { e = ARGV[2], v = 0, c = 0, b = 0, u = 0 }
  end
end

local function tell(kind, rest)
  redis.call(PUBLISH, topic, meta.e .. string.format('%016x', meta.v) .. node .. kind .. rest)
end

local function cost(id, info) return 2 * #id + #info + 16 end

local function let_in(id, info)
  redis.call('HSET', KEYS[2], id, info)
  meta.u, meta.b, meta.v = meta.u + 1, meta.b + cost(id, info), meta.v + 1
  tell('J', string.format('%04x', #id) .. id .. info)
end

local function let_go(id)
  local info = redis.call('HGET', KEYS[2], id)
  redis.call('HDEL', KEYS[3], '+' .. id)
  redis.call('ZREM', KEYS[4], 'g' .. id)
  if not info then return end
  redis.call('HDEL', KEYS[2], id)
  meta.u, meta.b, meta.v = meta.u - 1, math.max(0, meta.b - cost(id, info)), meta.v + 1
  tell('L', id)
end

-- Sets how many connections a user (or nobody: '') has through a node.
local function put(through, id, info, connections, grace)
  local field = through .. id
  local before = seats(field)
  if connections > 0 then
    redis.call('HSET', KEYS[3], field, connections)
  else
    redis.call('HDEL', KEYS[3], field)
  end
  meta.c = math.max(0, meta.c + connections - before)
  local sum = math.max(0, seats('#' .. through) + connections - before)
  if sum > 0 then
    redis.call('HSET', KEYS[3], '#' .. through, sum)
  else
    redis.call('HDEL', KEYS[3], '#' .. through)
  end
  if id == '' then return end
  local total = math.max(0, seats('+' .. id) + connections - before)
  if total > 0 then
    redis.call('HSET', KEYS[3], '+' .. id, total)
    redis.call('ZREM', KEYS[4], 'g' .. id)
    if redis.call('HEXISTS', KEYS[2], id) == 0 then let_in(id, info) end
  elseif redis.call('HEXISTS', KEYS[2], id) == 1 then
    redis.call('HDEL', KEYS[3], '+' .. id)
    if grace == 0 then return let_go(id) end
    if before > 0 then
      redis.call('ZADD', KEYS[4], now + grace, 'g' .. id)
      life = math.max(life, grace + lease)
      tell('D', grace)
    end
  end
end

local function of_node(name)
  local list, found = redis.call('HGETALL', KEYS[3]), {}
  for at = 1, #list, 2 do
    if string.sub(list[at], 1, 16) == name then found[#found + 1] = string.sub(list[at], 17) end
  end
  return found
end

-- Lets go of those whose lease or grace has passed; of graces also those that pass within `ahead`. Not of leases while the
-- server itself has not been up for as long: nobody could renew them while it was down.
local function sweep(ahead)
  local due = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now + ahead, 'WITHSCORES', 'LIMIT', 0, 1000)
  local up
  for at = 1, #due, 2 do
    local kind, name = string.sub(due[at], 1, 1), string.sub(due[at], 2)
    if kind == 'n' and #name == 16 then
      if name ~= node and tonumber(due[at + 1]) <= now then
        up = up or 1000 * count(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
        if up <= lease then
          redis.call('ZADD', KEYS[4], now + lease - up + 1000, due[at])
        else
          for _, id in ipairs(of_node(name)) do put(name, id, '', 0, 0) end
          redis.call('HDEL', KEYS[3], '@' .. name)
          redis.call('ZREM', KEYS[4], due[at])
        end
      end
    else
      redis.call('ZREM', KEYS[4], due[at])
      if kind == 'g' and seats('+' .. name) == 0 then let_go(name) end
    end
  end
end

-- Whether this is a change that was overtaken by a later one: one that was given up, and arrived all the same.
local function is_stale(number)
  if tonumber(number) <= seats('@' .. node) then return true end
  redis.call('HSET', KEYS[3], '@' .. node, number)
  return false
end

local function lease_seats()
  if seats('#' .. node) > 0 then
    redis.call('ZADD', KEYS[4], now + lease, 'n' .. node)
  else
    redis.call('ZREM', KEYS[4], 'n' .. node)
    redis.call('HDEL', KEYS[3], '@' .. node)
  end
end

-- Keeps what has changed; gives the milliseconds until somebody else's lease or a grace ends, or -1.
local function close()
  redis.call('HSET', KEYS[1], 'e', meta.e, 'v', meta.v, 'c', meta.c, 'b', meta.b, 'u', meta.u)
  life = math.max(life, redis.call('PTTL', KEYS[1]))
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
  local first = redis.call('ZRANGE', KEYS[4], 0, 1, 'WITHSCORES')
  for at = 1, #first, 2 do
    if first[at] ~= 'n' .. node then return math.max(0, math.ceil(tonumber(first[at + 1]) - now)) end
  end
  return -1
end
