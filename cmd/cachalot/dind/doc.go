// Package dind makes the dockerd of an image made from docker:dind pull through
// a mirror.
//
//	Run ── observe ──► Input ──► NewPlan ──► Plan ── do ──► exec the base's entrypoint
//	       (version)             (pure but              (files, GET /v2/, a line
//	                              for reading)           for each decision)
//
// Settings of the user win: flags, daemon.json, files in certs.d and variables stay as
// they are, and a line says how that affects the mirror. Files of this package begin
// with a comment that says so, and are written again at each start.
//
// The features of each dockerd version are from its source, and are named in the code
// that depends on them.
package dind
