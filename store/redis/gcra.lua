-- The generic cell rate algorithm (ATM Forum, 1996) with a cost per request, by Redis's own clock, for several limits.
-- KEYS[i], each once, holds a theoretical arrival time in microseconds.
-- ARGV, three for each key: microseconds per unit, burst in units, cost in units.
-- All keys are spent, or if one cost does not fit, none.
-- Returns for each {allowed, remaining units, microseconds until this cost fits, microseconds until the bucket is full}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers, arrivals, fits = {}, {}, true
local function limit(i) return tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]) end
for i = 1, #KEYS do
  arrivals[i] = math.max(tonumber(redis.call('GET', KEYS[i]) or now), now)
  local unit, burst, cost = limit(i)
  if arrivals[i] + unit * cost - unit * burst - now > 0 then fits = false end
end
for i = 1, #KEYS do
  local unit, burst, cost = limit(i)
  local early = arrivals[i] + unit * cost - unit * burst - now
  local arrival = arrivals[i]
  if fits and cost > 0 then
    arrival = arrival + unit * cost
    redis.call('SET', KEYS[i], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
  end
  local allowed = early > 0 and 0 or 1
  local remaining = math.floor(burst - (arrival - now) / unit)
  answers[i] = {allowed, remaining, math.ceil(math.max(early, 0)), math.ceil(arrival - now)}
end
return answers
