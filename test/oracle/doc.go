// Package oracle compares cachalot with no cachalot. It draws odd registries from a
// seed, and has the libraries of real clients pull from each, straight and through a
// mirror. What a client gets straight it must get through the mirror, byte for byte,
// and what was kept must be there in every outage.
//
// A registry is odd by a few quirks. Where a seed fails, its quirks are taken away one
// by one as long as it fails on, and what is left is printed.
package oracle
