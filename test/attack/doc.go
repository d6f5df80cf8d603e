// Package attack holds a running cachalot against hostile registries and clients: a file
// for each kind of attack. cachalot is in a cgroup with half of the memory that the chart
// gives it by default. While an attack goes on, probes are answered and honest
// clients served; each test prints what it tried, and what held.
package attack
