-- A node states which members of a topic are its own, and gets the others.
-- KEYS members, state, index of the node
-- ARGV prefix, topic, seconds, node, the id that the node had before, and its peers: id, metadata, id, metadata...
-- The metadata begins with +, or with ? for a peer of which a call has no reply yet: it may stay as it is, and is not added.
-- Members of the former id become this node's, or leave. A peer that another node has stays that node's.
-- Replies with evicted if the node has a tombstone, or synced, a snapshot, and the members of this node that were removed.
local members, state, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, topic, seconds, node, former = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if is_evicted(prefix, node) then
    return {'evicted'}
end
local own, unsure = {}, {}
for at = 6, #ARGV, 2 do
    if string.sub(ARGV[at + 1], 1, 1) == '+' then
        own[ARGV[at]] = node .. string.sub(ARGV[at + 1], 2)
    else
        unsure[ARGV[at]] = true
    end
end

local removed = {}
local stored = redis.call('HGETALL', members)
for at = 1, #stored, 2 do
    local peer, value = stored[at], stored[at + 1]
    local of = owner(value)
    if own[peer] and of == former and of ~= node then
        replace(members, state, peer, value, own[peer])
        if not count(state, former, -1) then
            redis.call('SREM', prefix .. 'topics:' .. former, topic)
        end
        count(state, node, 1)
        redis.call('SADD', index, topic)
        publish_event(prefix, state, topic, 'moved', peer, own[peer])
    elseif own[peer] and of == node and own[peer] ~= value then
        replace(members, state, peer, value, own[peer])
        publish_event(prefix, state, topic, 'updated', peer, own[peer])
    elseif (of == node or of == former) and not own[peer] and not unsure[peer] then
        local text = event(state, topic, 'left', peer, '')
        remove(members, state, prefix .. 'topics:' .. of, topic, peer, value)
        send_to_members(prefix, state, text, node)
        removed[#removed + 1] = peer
    end
    own[peer] = nil
end
for at = 6, #ARGV, 2 do
    local peer = ARGV[at]
    if own[peer] then
        add(members, state, index, topic, peer, own[peer])
        publish_event(prefix, state, topic, 'joined', peer, own[peer])
    end
end
expire(seconds, members, state, index)
local reply = snapshot('synced', members, state)
reply[#reply + 1] = removed
return reply
