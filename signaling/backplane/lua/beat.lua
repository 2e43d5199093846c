-- A node shows that it lives, and sees who else does.
-- KEYS nodes, tomb of the node, index of the node; ARGV seconds, node
-- Replies with buried where others took it for dead, or alive, the time in milliseconds, and each node's beats.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return {'buried'}
end
local beats = redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
local time = redis.call('TIME')
return {'alive', tostring(beats), time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1])}
