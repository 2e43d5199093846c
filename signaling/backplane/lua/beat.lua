-- A node shows that it lives, and sees who else does.
-- KEYS nodes, tomb of the node, index of the node; ARGV seconds, node, number of the beat, 1 to hear of its topics
-- The node counts its beats itself: a store that lost its data must not repeat a number that others have seen.
-- Replies with buried where others took it for dead, or alive, the number that the store had, the time in milliseconds, each
-- node's number, and the topics in which the node has members, if it asked: a store that lost its latest writes may have
-- too many.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return {'buried'}
end
local before = redis.call('HGET', KEYS[1], ARGV[2]) or ''
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
local time = redis.call('TIME')
local topics = ARGV[4] == '1' and redis.call('SMEMBERS', KEYS[3]) or {}
return {'alive', before, time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]), topics}
