package flow

import "slices"

// sameEnds reports whether two nodes may have told of the same connections by
// the ends that they name: an address has other holders at other times. A
// report whose end is ambiguous may hold several holders' connections, so it
// joins another of as many connections only.
func sameEnds(a, b *Flow) bool {
	return sameEnd(a.Source, b.Source, a.Connections == b.Connections) &&
		sameEnd(a.Destination, b.Destination, a.Connections == b.Connections)
}

func sameEnd(a, b *Endpoint, sameCount bool) bool {
	switch {
	case a == nil || b == nil || a == b:
		return true
	case a.Kind == EndpointPod && b.Kind == EndpointPod:
		return a.Namespace == b.Namespace && a.Pod == b.Pod
	case a.Kind == EndpointPod && b.Kind == EndpointAmbiguous:
		return sameCount && couldBe(b, a)
	case a.Kind == EndpointAmbiguous && b.Kind == EndpointPod:
		return sameCount && couldBe(a, b)
	}
	return true
}

func couldBe(e, pod *Endpoint) bool {
	return slices.Contains(e.Candidates, pod.Namespace+"/"+pod.Pod)
}

// vague reports whether a flow may hold connections of several holders of an address.
func vague(f *Flow) bool { return ambiguousEnd(f.Source) || ambiguousEnd(f.Destination) }

func ambiguousEnd(e *Endpoint) bool { return e != nil && e.Kind == EndpointAmbiguous }

// knownEnd is what is known of an end by two nodes' reports: the node that the
// pod runs on knows who had its address.
func knownEnd(decides, other *Endpoint) *Endpoint {
	if decides == nil || ambiguousEnd(decides) && other != nil && other.Kind == EndpointPod {
		return other
	}
	return decides
}
