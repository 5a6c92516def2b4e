-- The generic cell rate algorithm (ATM Forum, 1996) with a cost per request, by Redis's own clock, for many at once.
-- KEYS[i] holds a theoretical arrival time in microseconds.
-- ARGV, three for each key: microseconds per unit, burst in units, cost in units.
-- Returns for each {allowed, remaining units, microseconds until this cost fits, microseconds until the bucket is full}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local unit, burst, cost = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local arrival = math.max(tonumber(redis.call('GET', key) or now), now)
  local new_arrival = arrival + unit * cost
  local early = new_arrival - unit * burst - now
  if early > 0 then
    answers[i] = {0, math.floor(burst - (arrival - now) / unit), math.ceil(early), math.ceil(arrival - now)}
  else
    redis.call('SET', key, string.format('%.0f', new_arrival), 'PX', math.ceil((new_arrival - now) / 1000) + 1)
    answers[i] = {1, math.floor(burst - (new_arrival - now) / unit), 0, math.ceil(new_arrival - now)}
  end
end
return answers
