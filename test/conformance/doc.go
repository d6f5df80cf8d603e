// Package conformance runs the conformance suite of OCI's distribution-spec against
// cachalot in front of a real registry, which takes the suite's pushes:
//
//	suite -> cachalot -> relay (records) -> registry          TestReadOnly
//	suite -> router -> reads: cachalot -> registry            TestFull
//	                -> writes: registry
//
// test/conformance/run builds both programs and runs the tests; without it they are
// skipped. docs/reliability.md has the results, and the tests fail if theirs differ.
package conformance
