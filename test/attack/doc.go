// Package attack holds a running cachalot against hostile registries and clients: a file
// for each kind of attack. Where a cgroup can be made, cachalot has the memory of the
// chart's default limit in it. While an attack goes on, probes are answered and honest
// clients served; each test prints what it tried, and what held.
package attack
