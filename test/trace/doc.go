// Package trace replays pulls against eviction policies, to find the one with the best
// hit ratio for a cache size. It is for tests and for docs/eviction.md; the server does
// not use it.
//
//	Workload.Requests ─┐                      ┌─ LRU, SIEVE, … (a Policy)
//	                   ├─► Request … ─► Replay┤
//	ReadFAST18 ────────┘                      └─ Bound: what no policy exceeds
//
// The command in hitratio/ prints the table.
package trace
