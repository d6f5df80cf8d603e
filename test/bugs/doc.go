// Package bugs holds the record of bugs in docs/reliability.md to the faults that
// test/bugs/run brings back.
package bugs
