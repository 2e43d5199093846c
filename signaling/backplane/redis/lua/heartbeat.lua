-- A node shows that it is alive, and sees which other nodes are.
-- KEYS nodes, tombstone of the node, index of the node
-- ARGV seconds, node, number of the heartbeat, 1 if the node registers, prefix
-- The node counts its heartbeats itself: a store that lost its data must not repeat a number that others have seen.
-- The number is also published on the node's own channel, with the count of events that were sent there before: some may
-- have been lost.
-- Replies with evicted if the node has a tombstone, or alive, the number that the store had, the time in milliseconds, each
-- node's number, and, if the node registers, the topics in which it has members: a store that lost its latest writes may
-- have too many.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return {'evicted'}
end
if ARGV[4] == '1' then
    try_all_commands(ARGV[5] .. 'scratch:' .. ARGV[2])
end
local sent = ARGV[5] .. 'sent'
local before = redis.call('HGET', KEYS[1], ARGV[2]) or ''
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
redis.call('EXPIRE', sent, ARGV[1])
local events = redis.call('HGET', sent, ARGV[2]) or '0'
redis.call('PUBLISH', ARGV[5] .. 'node:' .. ARGV[2], 'heartbeat ' .. ARGV[3] .. ' ' .. events)
local time = redis.call('TIME')
local topics = ARGV[4] == '1' and redis.call('SMEMBERS', KEYS[3]) or {}
return {'alive', before, time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]), topics}
