-- Add a peer to a topic, publish that it joined, and list who is there. The node listens to its channel already.
-- KEYS members, state, index of the node; ARGV prefix, topic, seconds, node, peer, metadata, most peers, most bytes
-- Replies with evicted if the node has a tombstone, behind and the greatest id if the peer's is not greater, full and what
-- is (peers or bytes), or joined and a snapshot.
local members, state, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, topic, seconds, node, peer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local value = node .. ARGV[6]

if is_evicted(prefix, node) then
    return {'evicted'}
end
local known = redis.call('HMGET', state, 'last', 'bytes')
if known[1] and peer <= known[1] then
    return {'behind', known[1]}
end
if redis.call('HLEN', members) >= tonumber(ARGV[7]) then
    return {'full', 'peers'}
end
if tonumber(known[2] or 0) + listed_bytes(value) > tonumber(ARGV[8]) then
    return {'full', 'bytes'}
end
add(members, state, index, topic, peer, value)
publish_event(prefix, state, topic, 'joined', peer, value)
expire(seconds, members, state, index)
return snapshot('joined', members, state)
