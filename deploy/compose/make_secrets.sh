#!/bin/sh
# Makes the secrets of compose.yaml that do not exist yet. Only containers that mount its volume can read one.
set -eu
secrets=${1:-/run/secrets}
turnserver=${2:-/turnserver.conf}

make() { # make FILE: 32 random bytes, in hexadecimal
    if [ ! -s "$1" ]; then
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$1.new"
        mv "$1.new" "$1"
    fi
}
# The servers run as different users, which the volumes do not know.
umask 022
make "$secrets/redis/password"
make "$secrets/turn/secret"
make "$secrets/grafana/password"

# docs/redis.md has the rights that the server needs.
cat >"$secrets/redis/users.acl" <<END
user default off
user signaling on #$(tr -d '\n' <"$secrets/redis/password" | sha256sum | cut -d ' ' -f 1) ~signaling:* &signaling:* +ping +subscribe +publish +evalsha +eval +script|load +time +exists +expire +del +set +hget +hgetall +hincrby +hkeys +hlen +hmget +hset +hsetnx +hdel +sadd +srem +scard +smembers +srandmember
END

# coturn reads one file, which holds the secret.
{
    cat "$turnserver"
    echo "static-auth-secret=$(cat "$secrets/turn/secret")"
} >"$secrets/turn/turnserver.conf.new"
mv "$secrets/turn/turnserver.conf.new" "$secrets/turn/turnserver.conf"
