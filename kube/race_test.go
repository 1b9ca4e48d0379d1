//go:build race

package kube

// The race detector makes everything ten times as slow.
const churnFlows = 100_000
