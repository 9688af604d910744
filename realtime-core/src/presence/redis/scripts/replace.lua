-- All that a node has, in place of what is known of it. ARGV: 5 number of the change, 6 grace of those it has no longer,
-- then an id, an info and a number of connections each.
open()
sweep(0)
if not is_stale(ARGV[5]) then
  local has = {}
  for at = 7, #ARGV, 3 do has[ARGV[at]] = true end
  for _, id in ipairs(of_node(node)) do
    if not has[id] then put(node, id, '', 0, tonumber(ARGV[6])) end
  end
  for at = 7, #ARGV, 3 do put(node, ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), 0) end
  lease_seats()
end
return { meta.e, meta.v, close() }
