-- A node says which members of a topic are its own, and learns of the others.
-- KEYS members, state, index of the node
-- ARGV prefix, topic, seconds, node, the id that the node had before, and its peers: id, metadata, id, metadata...
-- In front of the metadata stands +, or ? for a peer whose joining has no answer yet: it may stay, and is not added.
-- Members that were the former id's are this node's, or nobody's. A peer that another node has stays that node's.
-- Replies with buried where others took the node for dead, or synced and a snapshot.
local members, state, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, topic, seconds, node, former = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if is_buried(prefix, node) then
    return {'buried'}
end
local own, unsure = {}, {}
for at = 6, #ARGV, 2 do
    if string.sub(ARGV[at + 1], 1, 1) == '+' then
        own[ARGV[at]] = node .. string.sub(ARGV[at + 1], 2)
    else
        unsure[ARGV[at]] = true
    end
end

local stored = redis.call('HGETALL', members)
for at = 1, #stored, 2 do
    local peer, value = stored[at], stored[at + 1]
    local of = owner(value)
    if own[peer] and of == former and of ~= node then
        redis.call('HSET', members, peer, own[peer])
        if not count(state, former, -1) then
            redis.call('SREM', prefix .. 'topics:' .. former, topic)
        end
        count(state, node, 1)
        redis.call('SADD', index, topic)
        tell(prefix, state, topic, 'moved', peer, own[peer])
    elseif (of == node or of == former) and not own[peer] and not unsure[peer] then
        local text = event(state, topic, 'left', peer, '')
        remove(members, state, prefix .. 'topics:' .. of, topic, peer, value)
        spread(prefix, state, text, node)
    end
    own[peer] = nil
end
for at = 6, #ARGV, 2 do
    local peer = ARGV[at]
    if own[peer] then
        add(members, state, index, topic, peer, own[peer])
        tell(prefix, state, topic, 'joined', peer, own[peer])
    end
end
keep(seconds, members, state, index)
return snapshot('synced', members, state)
