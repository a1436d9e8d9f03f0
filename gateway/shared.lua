-- One step on what the gateways at one stream share for a time.
--
-- KEYS the keys, in the stream's slot        ARGV[1] what to do        then more
--
-- claim   ARGV[2] ARGV[3] … for each key: milliseconds to keep it, and a value. Sets a key if it is free; returns what
--         each of them holds.
-- merge   ARGV[2] milliseconds to keep it        ARGV[3] … names and values. Adds them to the hash, the one key, and
--         returns all of it.
if ARGV[1] == 'claim' then
  local held = {}
  for n, key in ipairs(KEYS) do
    held[n] = redis.call('GET', key)
    if not held[n] then
      held[n] = ARGV[2 * n + 1]
      redis.call('SET', key, held[n], 'PX', ARGV[2 * n])
    end
  end
  return held
end
for at = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
