//go:build !race

package kube

const churnFlows = 1_000_000
