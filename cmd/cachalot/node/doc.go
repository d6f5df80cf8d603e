// Package node makes the containerd of a machine pull through a mirror, for as
// long as the mirror answers.
//
//	Run, one goroutine
//	  every 10 s ── GET /v2/ ──┬─ 200 ───────────► the block is in each hosts.toml
//	                           └─ third failure ─► it is in none
//	  at the end (SIGTERM) ──────────────────────► it is in none
//
// containerd reads <config_path>/<registry>/hosts.toml at each pull, or the one
// in _default for a registry that has no folder of its own. What is done here is
// a block of lines in such a file, between two comments that have the owner's
// name; the lines around it are others' and stay as they are, to the byte.
// Several owners may have theirs in one file.
//
// A registry's own server stays the last that containerd asks. The block goes
// all the same once the mirror is away, because containerd before 2.1 does not
// know dial_timeout: it would wait half a minute at each request to a machine
// that is gone.
package node
