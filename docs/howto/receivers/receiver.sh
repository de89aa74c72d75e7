#!/bin/sh
# A receiver of foreman's webhooks: a POSIX shell, openssl, and socat (or inetd, or systemd) to listen.
#
# FOREMAN_WEBHOOK_SECRET=whsec_... socat -T15 TCP-LISTEN:9000,bind=127.0.0.1,reuseaddr,fork EXEC:./receiver.sh
#
# The key is on openssl's command line: not for a machine whose other users you do not trust.
set -euf

cr=$(printf '\r')
seen=${SEEN_FOLDER:-./seen} # the ids of the events that were handled
body=$(mktemp)
trap 'rm -f "$body"' EXIT

answer() {
    printf 'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1"
    exit 0
}

refuse() {
    echo "refused: $1" >&2
    answer '401 Unauthorized'
}

# The key in hexadecimal digits. whsec_... is base64, with padding or without; other text is used as it is.
hexkey() {
    encoded=${1#whsec_}
    if [ "$encoded" = "$1" ]; then
        printf %s "$1"
    else
        case $((${#encoded} % 4)) in
            2) encoded="$encoded==" ;;
            3) encoded="$encoded=" ;;
        esac
        printf %s "$encoded" | openssl base64 -d -A
    fi | hex
}

hex() { od -An -v -tx1 | tr -d ' \n'; }

hmac() { openssl dgst -sha256 -mac HMAC -macopt "hexkey:$1" -binary; }

# Whether both signatures are those of one secret.
matches() {
    key=$(hexkey "$1")
    of_body=sha256=$(hmac "$key" <"$body" | hex)
    [ "$of_body" = "$given_of_body" ] || return 1
    v1=v1,$({ printf '%s.%s.' "$id" "$timestamp" && cat "$body"; } | hmac "$key" | openssl base64 -A)
    for part in $given; do
        [ "$part" != "$v1" ] || return 0
    done
    return 1
}

# Your part. The body is in the file $body.
handle() {
    echo "event $id: $(cat "$body")" >&2
}

id='' timestamp='' given='' given_of_body='' length=''
IFS= read -r request
while IFS= read -r line && line=${line%"$cr"} && [ -n "$line" ]; do
    value=${line#*:}
    value=${value# }
    case $(printf %s "${line%%:*}" | tr '[:upper:]' '[:lower:]') in
        webhook-id) id=$value ;;
        webhook-timestamp) timestamp=$value ;;
        webhook-signature) given=$value ;;
        x-foreman-signature) given_of_body=$value ;;
        content-length) length=$value ;;
    esac
done

case $request in POST\ *) ;; *) answer '405 Method Not Allowed' ;; esac
case $length in '' | *[!0-9]* | ????????*) answer '413 Content Too Large' ;; esac
head -c "$length" >"$body"

case $timestamp in '' | *[!0-9]* | ?????????????*) refuse 'webhook-timestamp is missing' ;; esac
now=$(date +%s)
if [ "$timestamp" -lt $((now - 300)) ] || [ "$timestamp" -gt $((now + 300)) ]; then
    refuse 'webhook-timestamp is more than 5 minutes from now'
fi
# There are two secrets while you change them.
matches "${FOREMAN_WEBHOOK_SECRET:?is not set}" ||
    { [ -n "${FOREMAN_WEBHOOK_SECRET_PREVIOUS:-}" ] && matches "$FOREMAN_WEBHOOK_SECRET_PREVIOUS"; } ||
    refuse 'the signatures are missing or do not match'

case $id in '' | *[!A-Za-z0-9_-]*) refuse 'webhook-id is not one of foreman' ;; esac
if [ ! -e "$seen/$id" ]; then
    handle || answer '500 Internal Server Error'
    mkdir -p "$seen" && : >"$seen/$id"
fi
answer '200 OK'
