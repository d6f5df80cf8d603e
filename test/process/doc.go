// Package process tests cachalot as a process: what survives kill -9 and a power
// cut, what it needs under load and at its limits, and what a warm blob costs in
// system calls.
//
// By default each test does little, for `go test ./...`. How often, how many and how
// long are variables, which .ci/run sets:
//
//	CACHALOT_TEST_KILLS      kills of TestKillBooks, and 20 times those of TestKill
//	CACHALOT_TEST_CUTS       power cuts
//	CACHALOT_TEST_DAMAGES    damaged indexes
//	CACHALOT_TEST_READERS    slow readers
//	CACHALOT_TEST_CLIENTS    clients of a storm
//	CACHALOT_TEST_BLOBS      blobs in the cache at a start
//	CACHALOT_SOAK            the soak, a duration
package process
