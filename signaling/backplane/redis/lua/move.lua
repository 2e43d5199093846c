-- Move a peer from one node to another; nobody leaves, and nobody joins.
-- KEYS members, state, index of the new node, index of the old one; ARGV prefix, topic, seconds, new node, old node, peer
-- Replies with evicted if the new node has a tombstone, gone if the old node does not have the peer (any more), or moved
-- and a snapshot.
local members, state, index, old_index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, topic, seconds, node, old, peer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

if is_evicted(prefix, node) then
    return {'evicted'}
end
local value = redis.call('HGET', members, peer)
if not value or owner(value) ~= old then
    return {'gone'}
end
value = node .. string.sub(value, NODE + 1)
redis.call('HSET', members, peer, value)
local has_more = count(state, old, -1)
if not has_more then
    redis.call('SREM', old_index, topic)
end
count(state, node, 1)
redis.call('SADD', index, topic)
local text = publish_event(prefix, state, topic, 'moved', peer, value)
if not has_more then
    send(prefix, old, text)
end
expire(seconds, members, state, index)
return snapshot('moved', members, state)
