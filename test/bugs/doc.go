// Package bugs compares the record of bugs in docs/reliability.md with the faults that
// test/bugs/run restores.
package bugs
