-- Appends frames to their jobs' replay logs and wakes the followers, all jobs of an engine step in one call.
-- KEYS[i] is both the log and the channel of frame i.
-- ARGV: longest log, seconds to keep it after a frame, seconds after an end, then per frame: id "<epoch>-<seq>", kind
-- ("s" start, "d" delta, "p" delta with logprobs or of one of several choices, "e" end, "g" progress), text, token ids.
-- The kind of a sealed frame is a capital letter. The ids are for the log alone: a reader goes on from the text.
-- The first delta of a job also has the time, in milliseconds: from it another attempt knows the age of the first token.
-- XADD refuses an id that is not above the last one: a stale epoch or a repeated frame is neither kept nor announced.
local accepted = 0
for i = 1, #KEYS do
  local id, kind, text, ids = ARGV[4 * i], ARGV[4 * i + 1], ARGV[4 * i + 2], ARGV[4 * i + 3]
  local message = id .. ' ' .. kind .. text
  if string.lower(kind) == 'g' then
    -- Progress is in no log: the newest is kept for those who come later, unless it is of an attempt that is over.
    local name = KEYS[i] .. ':progress'
    local epoch = tonumber(string.match(id, '^%d+'))
    local before = tonumber(string.match(redis.call('GET', name) or '', '^%d+') or '0')
    if epoch >= before then
      redis.call('SET', name, message, 'EX', ARGV[2])
      redis.call('PUBLISH', KEYS[i], message)
      accepted = accepted + 1
    end
  else
    local fields = {'k', kind, 't', text, 'i', ids}
    if string.sub(id, -2) == '-1' then
      local now = redis.call('TIME')
      fields[7], fields[8] = 'a', tostring(now[1] * 1000 + math.floor(now[2] / 1000))
    end
    local added = redis.pcall('XADD', KEYS[i], 'MAXLEN', '~', ARGV[1], id, unpack(fields))
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'equal or smaller', 1, true) then
        return redis.error_reply(added.err)
      end
    else
      redis.call('EXPIRE', KEYS[i], string.lower(kind) == 'e' and ARGV[3] or ARGV[2])
      redis.call('PUBLISH', KEYS[i], message)
      accepted = accepted + 1
    end
  end
end
return accepted
