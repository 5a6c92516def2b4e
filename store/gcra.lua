-- The generic cell rate algorithm (ATM Forum, 1996) with a cost per request, by Redis's own clock.
-- KEYS[1] holds the theoretical arrival time in microseconds.
-- ARGV: microseconds per unit, burst in units, cost in units.
-- Returns {allowed, remaining units, microseconds until this cost fits, microseconds until the bucket is full}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local unit, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local new_arrival = arrival + unit * cost
local early = new_arrival - unit * burst - now
if early > 0 then
  return {0, math.floor(burst - (arrival - now) / unit), math.ceil(early), math.ceil(arrival - now)}
end
redis.call('SET', KEYS[1], string.format('%.0f', new_arrival), 'PX', math.ceil((new_arrival - now) / 1000) + 1)
return {1, math.floor(burst - (new_arrival - now) / unit), 0, math.ceil(new_arrival - now)}
