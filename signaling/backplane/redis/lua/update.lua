-- Replace the metadata of a peer.
-- KEYS members, state, index of the node; ARGV prefix, topic, node, peer, metadata, most bytes
-- Replies with evicted if the node has a tombstone, gone if the node does not have the peer (any more), full and bytes, or
-- updated.
local members, state = KEYS[1], KEYS[2]
local prefix, topic, node, peer = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local value = node .. ARGV[5]

if is_evicted(prefix, node) then
    return {'evicted'}
end
local before = redis.call('HGET', members, peer)
if not before or owner(before) ~= node then
    return {'gone'}
end
local longer = listed_bytes(value) - listed_bytes(before)
if longer > 0 and tonumber(redis.call('HGET', state, 'bytes') or 0) + longer > tonumber(ARGV[6]) then
    return {'full', 'bytes'}
end
replace(members, state, peer, before, value)
publish_event(prefix, state, topic, 'updated', peer, value)
return {'updated'}
