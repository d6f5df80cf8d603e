// Package attack tests a running cachalot with hostile registries and clients: a file for
// each kind of attack. cachalot is in a cgroup with half of the chart's default memory.
// During an attack, probes must get responses and honest clients must be served. Each test
// prints the attack and the measured limits.
package attack
