// Package conformance runs the conformance suite of OCI's distribution-spec
// against cachalot before a real registry, which takes the suite's pushes:
//
//	suite -> cachalot -> relay (records) -> registry          TestReadOnly
//	suite -> router -> reads: cachalot -> registry            TestFull
//	                -> writes: registry
//
// Both programs are built by test/conformance/run, which then runs the tests;
// without it they are skipped. docs/reliability.md has the results, and the
// tests fail where it has others.
package conformance
