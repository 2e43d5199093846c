-- A node shuts down. If members of it are left, it stays registered until the other nodes miss its heartbeats and evict it.
-- KEYS nodes, index of the node; ARGV node, prefix
if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('HDEL', ARGV[2] .. 'sent', ARGV[1])
end
return {'deregistered'}
