-- Send a message to all other nodes of the cluster. It is on all their channels at once: what a node sends because of it is
-- behind it on every channel.
-- KEYS nodes
-- ARGV prefix, node, message
-- Replies with sent, and each other node and how many listeners its channel has: none if the node is gone.
local reply = {'sent'}
for _, node in ipairs(redis.call('HKEYS', KEYS[1])) do
    if node ~= ARGV[2] then
        reply[#reply + 1] = node
        reply[#reply + 1] = redis.call('PUBLISH', ARGV[1] .. 'node:' .. node, ARGV[3])
    end
end
return reply
