// Package flowauditv1 is the wire format between agents, collector and askers, with the one conversion to and from package flow.
package flowauditv1
