// Package oracle compares pulls through cachalot with direct pulls. It generates odd
// registries from a seed. The libraries of real clients pull from each, directly and
// through a mirror. Both must give the same bytes, and stored content must be available
// in every outage.
//
// A registry is odd by a few quirks. If a seed fails, quirks are removed one by one
// while it still fails, and the remaining quirks are printed.
package oracle
