// Package cluster runs a real Kubernetes: API server, controllers and kube-proxy, with nodes and pods that are network namespaces.
package cluster
