-- Publishes a batch: for each message the dedup mark and the stream entry in one atomic step (R4).
--
-- KEYS[1] the stream        KEYS[2] prefix of the dedup hashes        KEYS[3] the origin, all in the stream's hash slot
-- ARGV[1] length of a generation in seconds        ARGV[2] MAXLEN of the stream, "" for none
-- ARGV[3] the origin, if there is none yet: a random text
-- then for each message: digest (16 bytes), mark (10 bytes), id, type, channel, conversation, event
--
-- Returns one number a message, then the id of an entry no older than any that was added now or by an earlier try ("" if
-- none was), and last the origin, which is another one when Redis has been emptied:
--   0 duplicate: known with the same content        1 added
--   2 conflict: known with other content            3 added by an earlier try of ours whose answer was lost
--
-- Marks live in small hashes, one per generation and shard, that Redis keeps as listpacks (about 30 bytes a message).
-- A digest is looked for in this generation and the two before, so a mark counts for two generations at least.
-- The first six bytes of a mark tell the content, the last four the spool row it came from.
local SHARDS = 4096
local span = tonumber(ARGV[1])
local generation = math.floor(redis.call('TIME')[1] / span)
local results, newest, tried = {}, '', false

local function key(age, digest)
  local high, low = string.byte(digest, 1, 2)
  return KEYS[2] .. (generation - age) .. ':' .. (high * 256 + low) % SHARDS
end

local function known(digest)
  for age = 0, 2 do
    local mark = redis.call('HGET', key(age, digest), digest)
    if mark then return mark end
  end
end

local function add(at)
  local fields = {'id', ARGV[at + 2], 'type', ARGV[at + 3], 'channel', ARGV[at + 4],
                  'conversation', ARGV[at + 5], 'event', ARGV[at + 6]}
  if ARGV[2] == '' then
    newest = redis.call('XADD', KEYS[1], '*', unpack(fields))
  else
    newest = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(fields))
  end
  -- The mark comes second: if this fails, the message is published twice rather than never.
  local hash = key(0, ARGV[at])
  redis.call('HSET', hash, ARGV[at], ARGV[at + 1])
  if redis.call('HLEN', hash) == 1 then
    redis.call('EXPIREAT', hash, (generation + 4) * span)
  end
end

for at = 4, #ARGV, 7 do
  local mark = known(ARGV[at])
  local result
  if not mark then
    add(at)
    result = 1
  elseif mark == ARGV[at + 1] then
    result, tried = 3, true
  elseif string.sub(mark, 1, 6) == string.sub(ARGV[at + 1], 1, 6) then
    result = 0
  else
    result = 2
  end
  results[#results + 1] = result
end
if newest == '' and tried then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  newest = last and last[1] or ''
end
if not redis.call('SET', KEYS[3], ARGV[3], 'NX') then ARGV[3] = redis.call('GET', KEYS[3]) end
results[#results + 1] = newest
results[#results + 1] = ARGV[3]
return results
