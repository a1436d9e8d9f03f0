-- One step on what the gateways at one stream share for a time.
--
-- KEYS[1] the key, in the stream's slot        ARGV[1] what to do        ARGV[2] milliseconds to keep it        then more
--
-- claim   ARGV[3] a value. Sets it if the key is free; returns what the key holds.
-- merge   ARGV[3] … names and values. Adds them to the hash, and returns all of it.
if ARGV[1] == 'claim' then
  local held = redis.call('GET', KEYS[1])
  if held then return held end
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
  return ARGV[3]
end
for at = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
