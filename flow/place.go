package flow

import (
	"fmt"
	"strings"
)

// Place says on which node's side a connection between two places was stopped.
// The zero value is unknown.
type Place uint8

// The places.
const (
	PlaceUnknown Place = iota
	PlaceEgress        // the source's node refused it
	PlaceIngress       // the destination's node refused it
	PlaceBetween       // it left the source's node and did not come to the destination's
)

var placeNames = [...]string{"unknown", "egress", "ingress", "between"}

// String returns the place in lower case, as it appears in JSON.
func (p Place) String() string { return name(placeNames[:], uint8(p)) }

// ParsePlace reads egress, ingress or between in any case.
func ParsePlace(s string) (Place, error) {
	for i, n := range placeNames[1:] {
		if strings.EqualFold(s, n) {
			return Place(i + 1), nil
		}
	}
	return PlaceUnknown, fmt.Errorf("parse place %q: want egress, ingress or between", s)
}

// RefusedAt says where a connection was stopped, as far as the reports prove
// it: a refusal tells of the node that reports it, which must be one end's and
// surely not the other's. Between pods of one node it is unknown.
func (f *Flow) RefusedAt() Place {
	switch {
	case f.Verdict == VerdictUnanswered && f.Reason == ReasonLostBetween:
		return PlaceBetween
	case f.Verdict != VerdictDenied || f.Node == "" || f.Direction == DirectionUnknown:
		return PlaceUnknown
	case f.Source.on(f.Node) && f.Destination.notOn(f.Node):
		return PlaceEgress
	case f.Destination.on(f.Node) && f.Source.notOn(f.Node):
		return PlaceIngress
	}
	return PlaceUnknown
}

// on reports whether an end is surely on a node.
func (e *Endpoint) on(node string) bool {
	return e != nil && (e.Kind == EndpointPod || e.Kind == EndpointNode) && e.Node == node
}

// notOn reports whether an end is surely not on a node.
func (e *Endpoint) notOn(node string) bool {
	if e == nil {
		return false
	}
	switch e.Kind {
	case EndpointPod, EndpointNode:
		return e.Node != "" && e.Node != node
	case EndpointService, EndpointOutside, EndpointAPIServer:
		return true
	}
	return false
}
