#!/usr/bin/env bash
# Makes the certificates beside it, which last until 2126; the keys of the two authorities are thrown away.
#   broker.pem       for localhost and 127.0.0.1      expired.pem   the same, of the year 2020
#   elsewhere.pem    for another host                 client.pem    a client's
#   stranger.pem     a client's, of the other authority
# Each holds the key and the certificate, as a PEM keystore of Kafka does; client.crt and client.key are client.pem in two files.
set -euo pipefail
cd "$(dirname "$0")"
keys=$(mktemp -d); trap 'rm -rf "$keys"' EXIT
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
for authority in ca other-ca; do
  new_key "$keys/$authority.key"
  openssl req -x509 -new -key "$keys/$authority.key" -subj "/CN=$authority" -days 36500 \
    -addext "keyUsage=critical,keyCertSign" -out "$authority.pem"
done
signed() { # signed NAME AUTHORITY ALTERNATIVE_NAMES NOT_BEFORE NOT_AFTER
  mkdir -p "$keys/db"; : > "$keys/db/index"; openssl rand -hex 8 > "$keys/db/serial"
  printf '%s\n' "[ca]" "default_ca=c" "[c]" "database=$keys/db/index" "new_certs_dir=$keys/db" "serial=$keys/db/serial" \
    "default_md=sha256" "policy=p" "unique_subject=no" "[p]" "commonName=supplied" \
    "[e]" "basicConstraints=critical,CA:FALSE" "subjectAltName=$3" > "$keys/conf"
  new_key "$keys/$1.key"
  openssl req -new -key "$keys/$1.key" -subj "/CN=$1" -out "$keys/$1.csr"
  openssl ca -batch -notext -config "$keys/conf" -extensions e -cert "$2.pem" -keyfile "$keys/$2.key" \
    -startdate "$4" -enddate "$5" -in "$keys/$1.csr" -out "$keys/$1.crt" 2>/dev/null
  cat "$keys/$1.key" "$keys/$1.crt" > "$1.pem"
}
here=DNS:localhost,IP:127.0.0.1
signed broker ca "$here" 20200101000000Z 21260101000000Z
signed expired ca "$here" 20200101000000Z 20200201000000Z
signed elsewhere ca DNS:elsewhere.example 20200101000000Z 21260101000000Z
signed client ca "$here" 20200101000000Z 21260101000000Z
signed stranger other-ca "$here" 20200101000000Z 21260101000000Z
cp "$keys/client.crt" "$keys/client.key" .
