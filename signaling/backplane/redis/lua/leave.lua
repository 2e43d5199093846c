-- Remove a peer from a topic. Nothing happens if it is not there, or another node has it by now.
-- KEYS members, state, index of the node; ARGV prefix, topic, node, peer
local members, state, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, topic, node, peer = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local value = redis.call('HGET', members, peer)
if value and owner(value) == node and remove(members, state, index, topic, peer, value) then
    publish_event(prefix, state, topic, 'left', peer, '')
end
return {'left'}
