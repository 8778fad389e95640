#!/usr/bin/env bash
# Serves on localhost with TLS and access control, for the examples to call. In one shell:
#
#     cargo build --release && examples/serve.sh
#
# and in another `. .tools/examples/env`, and then any example. Arguments are for `dyndata serve`,
# such as --redis-url redis://127.0.0.1:6379; without that one, the data is in the process. The namespace
# "online" is indexed, for the example of that name.
#
# DYNDATA=FILE runs another binary, EXAMPLES_DIRECTORY=DIRECTORY keeps the credentials elsewhere.
set -euo pipefail
umask 077
cd "$(dirname "$0")/.."

dyndata=${DYNDATA:-target/release/dyndata}
directory=$(realpath -m "${EXAMPLES_DIRECTORY:-.tools/examples}")

# Makes a certificate authority, and a certificate for localhost that it signs. A server cannot use the
# certificate of an authority: rustls, among others, refuses that.
certificates() {
    local days=30 curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    # shellcheck disable=SC2086 # several words
    openssl req -x509 $curve -nodes -keyout ca-key.pem -out ca.pem -days $days \
        -subj '/CN=dyndata examples' -addext 'keyUsage=critical,keyCertSign,cRLSign'
    # shellcheck disable=SC2086
    openssl req -new $curve -nodes -keyout key.pem -out cert.csr -subj '/CN=localhost'
    cat >cert.extensions <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=DNS:localhost,IP:127.0.0.1
authorityKeyIdentifier=keyid
END
    openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days $days \
        -extfile cert.extensions -out cert.pem
    rm cert.csr cert.extensions
}

# Makes a token for the examples, and an access file with its hash. The token may read and write the
# namespaces "examples" and "online", and the default namespace, which python/app.py uses.
access() {
    local made
    made=$("$dyndata" token new --name examples --allow read,write --namespace ,examples,online)
    grep '^dyn_' <<<"$made" >token
    sed -n '/^\[\[caller/,$p' <<<"$made" >access.toml
}

dyndata=$(realpath "$dyndata")
mkdir -p "$directory"
cd "$directory"
# Makes new certificates a day before the old ones expire.
if ! openssl x509 -checkend 86400 -noout -in cert.pem >/dev/null 2>&1; then
    # openssl reports its progress, which matters only if it fails.
    told=$(certificates 2>&1) || { echo "$told" >&2 && exit 1; }
fi
# Makes a new token if there is none, or only one from before the example "online".
grep -qs '"online"' access.toml || access

# The environment of the examples, and of `dyndata get` and the other client commands.
printf 'export %s=%q\n' >./env \
    DYNDATA_ADDR https://localhost:50051 \
    DYNDATA_CLIENT_TLS_CA "$directory/ca.pem" \
    DYNDATA_TOKEN_FILE "$directory/token"

# The flag --indexed-namespaces goes before the variable. With an empty variable, nothing is indexed.
export DYNDATA_INDEXED_NAMESPACES=${DYNDATA_INDEXED_NAMESPACES-online}
test -n "$DYNDATA_INDEXED_NAMESPACES" || unset DYNDATA_INDEXED_NAMESPACES
exec "$dyndata" serve --tls-cert cert.pem --tls-key key.pem --access-file access.toml "$@"
