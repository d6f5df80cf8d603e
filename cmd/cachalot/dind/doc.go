// Package dind makes the dockerd of an image made from docker:dind pull through
// a mirror.
//
//	Run ── observe ──► Input ──► NewPlan ──► Plan ── do ──► exec the base's entrypoint
//	       (version)             (pure but              (files, GET /v2/, a line
//	                              for reading)           for each decision)
//
// What a user has written wins: flags, daemon.json, files in certs.d and variables
// stay as they are, and a line says what that means for the mirror. Files made
// here begin with a comment that says so, and are made anew at each start.
//
// What each version of dockerd can do was read from its source, and is named
// where it decides something.
package dind
