#!/bin/sh
# Stands in for that of docker:dind, which cannot be pulled where the tests run,
# and keeps what is documented of it: no argument, or flags alone, add a socket,
# a TCP port and TLS; "dockerd" first adds nothing; another command finds the
# daemon. All but root run dockerd by RootlessKit.
set -eu

# certificates DIR: a CA, and what the server and the clients have of it.
certificates() {
	local key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1" names # RSA's take a second
	mkdir -p "$1/ca" "$1/server" "$1/client"
	# shellcheck disable=SC2086 # words without spaces
	openssl req -x509 $key -nodes -days 30 -subj "/CN=stand-in CA" \
		-keyout "$1/ca/key.pem" -out "$1/ca/cert.pem"
	names="DNS:docker,DNS:localhost,DNS:$(hostname),IP:127.0.0.1"
	printf 'subjectAltName = %s\nextendedKeyUsage = serverAuth\n' "$names" >"$1/server/extensions"
	printf 'extendedKeyUsage = clientAuth\n' >"$1/client/extensions"
	for side in server client; do
		# shellcheck disable=SC2086
		openssl req $key -nodes -subj "/CN=stand-in $side" -keyout "$1/$side/key.pem" -out "$1/$side/request.pem"
		openssl x509 -req -in "$1/$side/request.pem" -CA "$1/ca/cert.pem" -CAkey "$1/ca/key.pem" -CAcreateserial \
			-days 30 -extfile "$1/$side/extensions" -out "$1/$side/cert.pem"
		cp "$1/ca/cert.pem" "$1/$side/ca.pem"
	done
	chmod 0644 "$1/client/key.pem" # for any user of another container
}

user=$(id -u)
socket=unix:///var/run/docker.sock
if [ "$user" != 0 ]; then
	export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$user}"
	mkdir -p "$XDG_RUNTIME_DIR"
	socket="unix://$XDG_RUNTIME_DIR/docker.sock"
fi

case "${1--}" in
-*)
	port=2375
	if [ -n "${DOCKER_TLS_CERTDIR:-}" ]; then
		port=2376
		certificates "$DOCKER_TLS_CERTDIR" 2>&1
		set -- --tlsverify --tlscacert "$DOCKER_TLS_CERTDIR/server/ca.pem" \
			--tlscert "$DOCKER_TLS_CERTDIR/server/cert.pem" --tlskey "$DOCKER_TLS_CERTDIR/server/key.pem" "$@"
	fi
	set -- dockerd --host="$socket" --host="tcp://0.0.0.0:$port" "$@"
	forward="-p 0.0.0.0:$port:$port/tcp"
	;;
esac

if [ "$1" != dockerd ]; then
	exec docker-entrypoint.sh "$@"
fi
set -- docker-init -- "$@"
if [ "$user" != 0 ]; then
	# Its flags are words without spaces.
	# shellcheck disable=SC2086
	exec rootlesskit --net="${DOCKERD_ROOTLESS_ROOTLESSKIT_NET:-slirp4netns}" \
		--mtu="${DOCKERD_ROOTLESS_ROOTLESSKIT_MTU:-1500}" --disable-host-loopback \
		--port-driver=builtin --copy-up=/etc --copy-up=/run \
		${DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS:-} ${forward:-} "$@"
fi
exec "$@"
