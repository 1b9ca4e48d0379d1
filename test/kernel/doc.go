// Package kernel tests the agent as it is shipped, against the kernel: what was done in network namespaces is what it must report.
package kernel
