// Package process tests cachalot as a process: the cache after kill -9 and a power cut,
// resources under load and at the limits, and the system calls for a warm blob.
//
// By default each test is short, for `go test ./...`. These variables, which .ci/run sets,
// make it longer:
//
//	CACHALOT_TEST_KILLS      kills of TestKillBooks, and 20 times those of TestKill
//	CACHALOT_TEST_CUTS       power cuts
//	CACHALOT_TEST_DAMAGES    damaged indexes
//	CACHALOT_TEST_READERS    slow readers
//	CACHALOT_TEST_CLIENTS    clients of a storm
//	CACHALOT_TEST_BLOBS      blobs in the cache at a start
//	CACHALOT_SOAK            the soak, a duration
package process
