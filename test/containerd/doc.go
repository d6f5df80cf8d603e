// Package containerd tests "cachalot node" with real containerds, from 1.7 to 2.4: with
// their default configuration, and with each form of it. run builds them. The registry
// counts who pulls, so that a pull through the mirror is told from one past it.
package containerd
