// Package policy decides what the NetworkPolicies of networking.k8s.io/v1 say about a connection, and explains why.
package policy
