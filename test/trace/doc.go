// Package trace replays pulls against eviction policies, to see which keeps the
// most useful blobs in so many bytes. It is for tests and for docs/eviction.md,
// and no part of the server.
//
//	Workload.Requests ─┐                      ┌─ LRU, SIEVE, … (a Policy)
//	                   ├─► Request … ─► Replay┤
//	ReadFAST18 ────────┘                      └─ Bound: what no policy exceeds
//
// The command in hitratio/ prints the table.
package trace
