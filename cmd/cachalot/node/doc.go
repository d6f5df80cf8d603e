// Package node makes the containerd of a machine pull through a mirror while the
// mirror answers.
//
//	Run, one goroutine
//	  at the start, and when containerd starts ─► a pull by containerd says which folder it reads
//	  every 10 s ── GET /v2/ ──┬─ 200 ───────────► the block is in each hosts.toml there
//	                           └─ third failure ─► it is in none
//	  at the end (SIGTERM) ──────────────────────► it is in none
//
// containerd reads <config_path>/<registry>/hosts.toml at each pull, or the file in
// _default for a registry without a folder. This package writes a block of lines into
// such a file, between two comments with the owner's name. All other lines stay as
// they are, to the byte. A file may have blocks of several owners.
//
// containerd asks the registry's own server last. The block is still removed when the
// mirror does not answer, because containerd before 2.1 does not know dial_timeout: it
// waits half a minute at each request to a machine that is down.
//
//	machine.go     where containerd, K3s and others have their socket and folders
//	containerd.go  the pull that says which folder containerd reads
//	prove.go       what Run does with that
//	folder.go      the folder, hosts.go one file in it
//	settings.go    containerd's own configuration, configure.go its change and the restart
//	status.go      /readyz and /metrics, taint.go the startup taint
package node
