-- One step of a lease, by which one process in the world does a channel's work at a time.
--
-- KEYS[1] the lease: its owner, while it lives        KEYS[2] the fencing number: how often it was taken
-- KEYS[3] a hash: what the owners share, so that the next one goes on where the last one was; all in the stream's slot
-- ARGV[1] what to do        ARGV[2] "<spool>:<random text>", the owner        ARGV[3] see below        then more
--
-- take    ARGV[3] milliseconds to live. Returns the fencing number, or 0 when another owner has it. One of our own spool
--         is a process that died: only one can have a spool open.
-- keep    ARGV[3] milliseconds to live. Returns 1, or 0 when it is lost.
-- give    Returns 1, or 0 when it was lost.
-- write   ARGV[3] the fencing number, then names and values for the hash. Returns 1, or 0 when it is lost: an owner that
--         comes back late changes nothing.
local action, owner = ARGV[1], ARGV[2]
local now = redis.call('GET', KEYS[1])

if action == 'take' then
  if now and string.match(now, '^[^:]*') ~= string.match(owner, '^[^:]*') then return 0 end
  redis.call('SET', KEYS[1], owner, 'PX', ARGV[3])
  return redis.call('INCR', KEYS[2])
end
if now ~= owner then return 0 end
if action == 'keep' then return redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
if action == 'give' then return redis.call('DEL', KEYS[1]) end
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
for at = 4, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1]) end
return 1
