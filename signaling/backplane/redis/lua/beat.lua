-- A node shows that it lives, and sees who else does.
-- KEYS nodes, tomb of the node, index of the node; ARGV seconds, node, number of the beat, 1 where the node registers, prefix
-- The node counts its beats itself: a store that lost its data must not repeat a number that others have seen.
-- On its channel the node hears the number again, and how many events it was told of before: some may have been lost.
-- Replies with buried where others took it for dead, or alive, the number that the store had, the time in milliseconds, each
-- node's number, and the topics in which the node has members, if it registers: a store that lost its latest writes may
-- have too many.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return {'buried'}
end
if ARGV[4] == '1' then
    try_all(ARGV[5] .. 'scratch:' .. ARGV[2])
end
local told = ARGV[5] .. 'told'
local before = redis.call('HGET', KEYS[1], ARGV[2]) or ''
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
redis.call('EXPIRE', told, ARGV[1])
local events = redis.call('HGET', told, ARGV[2]) or '0'
redis.call('PUBLISH', ARGV[5] .. 'node:' .. ARGV[2], 'beat ' .. ARGV[3] .. ' ' .. events)
local time = redis.call('TIME')
local topics = ARGV[4] == '1' and redis.call('SMEMBERS', KEYS[3]) or {}
return {'alive', before, time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]), topics}
