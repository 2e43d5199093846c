-- A node shows that it lives, and sees who else does.
-- KEYS nodes, tomb of the node, index of the node; ARGV seconds, node, 1 to hear of its topics
-- Replies with buried where others took it for dead, or alive, its beats, the time in milliseconds, each node's beats, and
-- the topics in which the node has members, if it asked: a store that lost the latest writes may have too many.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return {'buried'}
end
local beats = redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
local time = redis.call('TIME')
local topics = ARGV[3] == '1' and redis.call('SMEMBERS', KEYS[3]) or {}
return {'alive', tostring(beats), time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]), topics}
