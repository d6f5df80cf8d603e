// Package process tests cachalot as a process: what survives kill -9, and what
// a warm blob costs in system calls.
package process
