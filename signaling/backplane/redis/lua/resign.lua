-- A node goes in peace. Where members of it are left, it is for the others to notice that it is gone.
-- KEYS nodes, index of the node; ARGV node, prefix
if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('HDEL', ARGV[2] .. 'told', ARGV[1])
end
return {'resigned'}
