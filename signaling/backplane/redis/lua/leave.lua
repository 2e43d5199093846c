-- Remove a peer from a topic. Nothing happens if it is not there, or another node has it by now.
-- Replies with left, and 1 if it was the last peer of the topic, or 2 if another node has it.
-- KEYS members, state, index of the node; ARGV prefix, topic, node, peer
local members, state, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, topic, node, peer = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local value = redis.call('HGET', members, peer)
if not (value and owner(value) == node) then
    return {'left', value and 2 or 0}
end
local has_more = remove(members, state, index, topic, peer, value)
if has_more then
    publish_event(prefix, state, topic, 'left', peer, '')
end
return {'left', has_more and 0 or 1}
