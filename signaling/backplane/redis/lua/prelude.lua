-- Shared by all scripts, and put in front of each (docs/cluster-design.md, "What is stored").
--
-- A topic is two hashes. Its members: peer -> node .. metadata. Its state: gen (when it was made), seq (of its latest
-- event), last (the greatest id that joined), bytes (of its peer-list), and "@" .. node -> how many members a node has.
-- Each event is sent to those nodes, on the channel of each.

local NODE = 16 -- characters of a node's id

local function listed_bytes(value)
    -- {"id":"..."}, with its comma, and ,"metadata":... if there is any: signaling/core/messages.py.
    local metadata = #value - NODE
    return 36 + (metadata > 0 and metadata + 12 or 0)
end

local function owner(value)
    return string.sub(value, 1, NODE)
end

local function nodes_of(state)
    local nodes = {}
    for _, field in ipairs(redis.call('HKEYS', state)) do
        if string.sub(field, 1, 1) == '@' then
            nodes[#nodes + 1] = string.sub(field, 2)
        end
    end
    return nodes
end

local function event(state, topic, kind, peer, value)
    local gen, seq = redis.call('HGET', state, 'gen'), redis.call('HINCRBY', state, 'seq', 1)
    return table.concat({kind, gen, seq, peer, #topic}, ' ') .. '\n' .. topic .. value
end

-- The events that are sent to each node are counted: the node compares the count with what it got (heartbeat.lua).
local function send(prefix, node, text)
    redis.call('HINCRBY', prefix .. 'sent', node, 1)
    redis.call('PUBLISH', prefix .. 'node:' .. node, text)
end

-- Send an event to all nodes with members, its cause included: a call of a connection that broke can run late, and only
-- the caller sees that its event is not true (any more). ``also`` is one more node, which may have no members left.
local function send_to_members(prefix, state, text, also)
    for _, node in ipairs(nodes_of(state)) do
        send(prefix, node, text)
        if node == also then
            also = nil
        end
    end
    if also then
        send(prefix, also, text)
    end
end

local function publish_event(prefix, state, topic, kind, peer, value)
    local text = event(state, topic, kind, peer, value)
    send_to_members(prefix, state, text)
    return text
end

local function count(state, node, by)
    if redis.call('HINCRBY', state, '@' .. node, by) <= 0 then
        redis.call('HDEL', state, '@' .. node)
        return false
    end
    return true
end

local function add(members, state, index, topic, peer, value)
    if redis.call('HSETNX', state, 'seq', 0) == 1 then
        local time = redis.call('TIME')
        redis.call('HSET', state, 'gen', time[1] .. '.' .. time[2])
    end
    redis.call('HSET', members, peer, value)
    redis.call('HINCRBY', state, 'bytes', listed_bytes(value))
    count(state, owner(value), 1)
    redis.call('SADD', index, topic)
    local last = redis.call('HGET', state, 'last')
    if not last or peer > last then
        redis.call('HSET', state, 'last', peer)
    end
end

-- Replace what is stored of a member; its node may be another one.
local function replace(members, state, peer, before, value)
    redis.call('HSET', members, peer, value)
    redis.call('HINCRBY', state, 'bytes', listed_bytes(value) - listed_bytes(before))
end

-- Remove a member; returns whether any is left.
local function remove(members, state, index, topic, peer, value)
    redis.call('HDEL', members, peer)
    redis.call('HINCRBY', state, 'bytes', -listed_bytes(value))
    if not count(state, owner(value), -1) then
        redis.call('SREM', index, topic)
    end
    if redis.call('EXISTS', members) == 0 then
        redis.call('DEL', state)
        return false
    end
    return true
end

-- A call of an evicted node can come late. Nobody would evict the members that it adds: the node has been evicted.
local function is_evicted(prefix, node)
    return redis.call('EXISTS', prefix .. 'tombstone:' .. node) == 1
end

local function expire(seconds, ...)
    for _, key in ipairs({...}) do
        redis.call('EXPIRE', key, seconds)
    end
end

local function snapshot(status, members, state)
    local known = redis.call('HMGET', state, 'gen', 'seq')
    return {status, known[1] or '', known[2] or '0', redis.call('HGETALL', members)}
end

-- Run every command that any of the scripts needs, and leave nothing behind: a store that refuses one would fail each join.
local function try_all_commands(scratch)
    redis.call('DEL', scratch)
    redis.call('HSETNX', scratch, 'a', 0)
    redis.call('HSET', scratch, 'b', 0)
    redis.call('HINCRBY', scratch, 'a', 1)
    redis.call('HGET', scratch, 'a')
    redis.call('HMGET', scratch, 'a', 'b')
    redis.call('HLEN', scratch)
    redis.call('HKEYS', scratch)
    redis.call('HGETALL', scratch)
    redis.call('HDEL', scratch, 'a', 'b')
    redis.call('SADD', scratch, 'a')
    redis.call('SCARD', scratch)
    redis.call('SMEMBERS', scratch)
    redis.call('SRANDMEMBER', scratch)
    redis.call('SREM', scratch, 'a')
    redis.call('SET', scratch, 1, 'EX', 1)
    redis.call('EXPIRE', scratch, 1)
    redis.call('EXISTS', scratch)
    redis.call('DEL', scratch)
end
