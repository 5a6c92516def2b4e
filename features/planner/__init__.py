"""`headrace plan`: forecasts waits and cost for fixed and for scaled capacity, before workers are paid for.

Jobs of a trace run through the product's own decisions (order, ready window, admission, engine, autoscaling), with the
clock of simpy and a runner that only says how long a step takes (docs/planning.md).
"""
