// Package process tests cachalot as a process: what survives kill -9 and a power
// cut, what it needs under load and at its limits, and what a warm blob costs in
// system calls.
package process
