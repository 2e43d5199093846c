-- A node saw no heartbeat of another one for too long: that node gets a tombstone, and its members leave, a bounded number
-- in each call.
-- KEYS nodes, tombstone of the node, index of the node
-- ARGV prefix, seconds, node, its latest heartbeat that was seen (empty for none), most members in this call, 1 if they are
-- to be listed
-- Replies with alive if a heartbeat came since, or evicted, how many topics are left, and for each member that was removed:
-- its topic, id, value, and 1 if it was the topic's last.
local nodes, tombstone, index = KEYS[1], KEYS[2], KEYS[3]
local prefix, seconds, node, most, lists = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5]), ARGV[6] == '1'
local removed = {}

if redis.call('EXISTS', tombstone) == 0 then
    if (redis.call('HGET', nodes, node) or '') ~= ARGV[4] then
        return {'alive'}
    end
    redis.call('SET', tombstone, 1, 'EX', seconds)
    redis.call('HDEL', nodes, node)
end
while most > 0 do
    local topic = redis.call('SRANDMEMBER', index)
    if not topic then
        break
    end
    local members, state = prefix .. 'members:' .. topic, prefix .. 'state:' .. topic
    local stored = redis.call('HGETALL', members)
    for at = 1, #stored, 2 do
        if most > 0 and owner(stored[at + 1]) == node then
            most = most - 1
            local has_more = remove(members, state, index, topic, stored[at], stored[at + 1])
            if has_more then
                publish_event(prefix, state, topic, 'left', stored[at], '')
            end
            if lists then
                for _, part in ipairs({topic, stored[at], stored[at + 1], has_more and 0 or 1}) do
                    removed[#removed + 1] = part
                end
            end
        end
    end
    if most > 0 then
        redis.call('SREM', index, topic)
    end
end
local left = redis.call('SCARD', index)
if left == 0 then
    redis.call('HDEL', prefix .. 'sent', node)
end
return {'evicted', left, removed}
