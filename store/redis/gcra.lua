-- The generic cell rate algorithm (ATM Forum, 1996) with a cost per request, by Redis's own clock, for many at once.
-- KEYS[i] holds a theoretical arrival time in microseconds.
-- ARGV, four for each key: microseconds per unit, burst in units, cost in units, number of the group it belongs to.
-- The keys of a group stand together, each once; all of them are spent, or if one does not fit, none.
-- Returns for each {allowed, remaining units, microseconds until this cost fits, microseconds until the bucket is full}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
local first = 1
while first <= #KEYS do
  local group, last, fits, arrivals = ARGV[4 * first], first, true, {}
  while last < #KEYS and ARGV[4 * (last + 1)] == group do last = last + 1 end
  for i = first, last do
    arrivals[i] = math.max(tonumber(redis.call('GET', KEYS[i]) or now), now)
    local unit, burst, cost = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1])
    if arrivals[i] + unit * cost - unit * burst - now > 0 then fits = false end
  end
  for i = first, last do
    local unit, burst, cost = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1])
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
  first = last + 1
end
return answers
