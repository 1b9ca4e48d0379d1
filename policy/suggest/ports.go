package suggest

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
)

// service is a protocol and port that was used.
type service struct {
	protocol flow.Protocol
	port     uint16
}

func compareServices(a, b service) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
}

// portTerm is one port of a rule.
type portTerm struct {
	protocol    flow.Protocol
	name        string // instead of numbers, if not empty
	first, last uint16
}

func compareTerms(a, b portTerm) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.name, b.name), cmp.Compare(a.first, b.first))
}

// termsOf turns ports into the fewest terms: names where every pod has them,
// and had them when they were used, ranges where ports are dense.
func termsOf(used map[service][]*history.Edge, pods []*history.Identity, slack float64) []portTerm {
	var terms []portTerm
	var numbers []service
	for s, edges := range used {
		if name := portName(pods, s); name != "" && wereNamed(edges, name, s) {
			terms = append(terms, portTerm{protocol: s.protocol, name: name})
		} else {
			numbers = append(numbers, s)
		}
	}
	terms = append(terms, ranges(numbers, slack)...)
	slices.SortFunc(terms, compareTerms)
	return slices.Compact(terms)
}

// portName finds a name that every pod gives to a port, and to that port only.
func portName(pods []*history.Identity, s service) string {
	if len(pods) == 0 {
		return ""
	}
	first, _ := pods[0].Ports()
	for _, candidate := range first {
		if !slices.ContainsFunc(pods, func(i *history.Identity) bool {
			ports, known := i.Ports()
			return !known || !names(ports, candidate.Name, s)
		}) {
			return candidate.Name
		}
	}
	return ""
}

// wereNamed reports whether the destinations gave the name to the port at the
// time of all edges.
func wereNamed(edges []*history.Edge, name string, s service) bool {
	return !slices.ContainsFunc(edges, func(e *history.Edge) bool {
		if e.To.Identity == nil {
			return true
		}
		ports, known := e.To.Identity.PortsAt(e.Last)
		return !known || !names(ports, name, s)
	})
}

// names reports whether a name is that of a port, and of no other.
func names(ports []policy.NamedPort, name string, s service) bool {
	found := false
	for _, p := range ports {
		if p.Name == name && p.Protocol == s.protocol {
			if p.Port != s.port {
				return false
			}
			found = true
		}
	}
	return found
}

// shortestRange is how many neighbouring ports become a range.
const shortestRange = 3

// ranges joins ports that are neighbours, and those between which no more than
// a share of the ports was never seen.
func ranges(used []service, slack float64) []portTerm {
	slices.SortFunc(used, compareServices)
	used = slices.Compact(used)
	var out []portTerm
	for len(used) > 0 {
		n := widest(used, slack)
		if n >= shortestRange {
			out = append(out, portTerm{protocol: used[0].protocol, first: used[0].port, last: used[n-1].port})
		} else {
			n = 1
			out = append(out, portTerm{protocol: used[0].protocol, first: used[0].port, last: used[0].port})
		}
		used = used[n:]
	}
	return out
}

// widest is how many of the ports, from the first on, are dense enough for one range.
func widest(used []service, slack float64) int {
	n := 1
	for i := 1; i < len(used) && used[i].protocol == used[0].protocol; i++ {
		span := float64(used[i].port) - float64(used[0].port) + 1
		if span-float64(i+1) <= slack*span {
			n = i + 1
		}
	}
	return n
}

// policyPorts writes terms as Kubernetes has them.
func policyPorts(terms []portTerm) []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for _, t := range terms {
		protocol := corev1.Protocol(map[flow.Protocol]string{flow.TCP: "TCP", flow.UDP: "UDP", flow.SCTP: "SCTP"}[t.protocol])
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		port := intstr.FromInt32(int32(t.first))
		if t.name != "" {
			port = intstr.FromString(t.name)
		}
		p.Port = &port
		if t.name == "" && t.last > t.first {
			end := int32(t.last)
			p.EndPort = &end
		}
		out = append(out, p)
	}
	return out
}
