-- Closes a job's replay log for every attempt before the caller's. Returns the time in milliseconds, and its entries.
-- KEYS[1] is the log. ARGV: the highest id that an older attempt could have, seconds to keep the log.
-- The added entry only raises the log's last id, which stays when the entry is deleted.
local added = redis.pcall('XADD', KEYS[1], ARGV[1], 'k', 'x')
if type(added) == 'table' and added.err then
  if not string.find(added.err, 'equal or smaller', 1, true) then
    return redis.error_reply(added.err)
  end
else
  redis.call('XDEL', KEYS[1], ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
local now = redis.call('TIME')
return {tostring(now[1] * 1000 + math.floor(now[2] / 1000)), redis.call('XRANGE', KEYS[1], '-', '+')}
