#!/bin/sh
# Stands in for that of docker:cli: a word that docker knows is a command of its,
# and the daemon is the one here, or the service "docker" beside it.
set -eu

if [ "${1#-}" != "$1" ] || docker help "$1" >/dev/null 2>&1; then
	set -- docker "$@"
fi
if [ -z "${DOCKER_HOST:-}" ]; then
	if [ -S /var/run/docker.sock ]; then
		export DOCKER_HOST=unix:///var/run/docker.sock
	elif [ -S "/run/user/$(id -u)/docker.sock" ]; then
		export DOCKER_HOST="unix:///run/user/$(id -u)/docker.sock"
	elif [ -s "${DOCKER_TLS_CERTDIR:-/nowhere}/client/key.pem" ]; then
		export DOCKER_HOST=tcp://docker:2376
	else
		export DOCKER_HOST=tcp://docker:2375
	fi
fi
case "$DOCKER_HOST" in
tcp:*)
	if [ -s "${DOCKER_TLS_CERTDIR:-/nowhere}/client/key.pem" ] && [ -z "${DOCKER_TLS_VERIFY:-}" ]; then
		export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH="${DOCKER_CERT_PATH:-$DOCKER_TLS_CERTDIR/client}"
	fi
	;;
esac
exec "$@"
