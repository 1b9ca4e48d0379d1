package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
)

// metadataName is the label that the control plane sets on every namespace.
const metadataName = "kubernetes.io/metadata.name"

// needs are what one direction of a policy has to allow, and the edges that
// need it: peers and ports.
type needs map[party]map[service][]*history.Edge

func (n needs) add(p party, s service, edges ...*history.Edge) {
	if n[p] == nil {
		n[p] = make(map[service][]*history.Edge)
	}
	n[p][s] = append(n[p][s], edges...)
}

// built is a rule that was made.
type built struct {
	peers   []networkingv1.NetworkPolicyPeer
	ports   []networkingv1.NetworkPolicyPort
	reasons []string
	edges   []*history.Edge
	order   string
}

// assembly makes the rules of one direction of one policy.
type assembly struct {
	namespace string
	egress    bool
	// pods are those whose ports ingress rules name; nil if ports are not named.
	pods      []*history.Identity
	portSlack float64
	// coarse peers are whole namespaces.
	coarse bool
	// addresses says how addresses of a use are joined.
	addresses func(service) *aggregation
	// mayAsk says whether DNS over the other protocol may be allowed too; nil
	// means always.
	mayAsk func([]*history.Edge, service) bool
}

// rules makes the fewest rules, in a stable order.
func (a *assembly) rules(n needs) []built {
	n = a.withDNS(n)
	out := a.podRules(n)
	out = append(out, a.addressRules(n)...)
	slices.SortFunc(out, func(x, y built) int { return strings.Compare(x.order, y.order) })
	return out
}

// withDNS adds the other protocol where DNS was used: answers that do not fit
// into a datagram are asked for again over TCP.
func (a *assembly) withDNS(n needs) needs {
	out := make(needs, len(n))
	for p, services := range n {
		for s, edges := range services {
			out.add(p, s, edges...)
			if isDNS(s, edges) {
				twin := service{flow.UDP, s.port}
				if s.protocol == flow.UDP {
					twin.protocol = flow.TCP
				}
				if a.mayAsk == nil || a.mayAsk(edges, twin) {
					out.add(p, twin, edges...)
				}
			}
		}
	}
	for _, services := range out {
		for s, edges := range services {
			slices.SortFunc(edges, compareEdges)
			services[s] = slices.Compact(edges)
		}
	}
	return out
}

func compareEdges(a, b *history.Edge) int { return cmp.Compare(a.Number, b.Number) }

// dnsPort is where DNS is served; its pods may do so elsewhere, and name the port.
const dnsPort = 53

func isDNS(s service, edges []*history.Edge) bool {
	if s.protocol != flow.UDP && s.protocol != flow.TCP {
		return false
	}
	if s.port == dnsPort {
		return true
	}
	return slices.ContainsFunc(edges, func(e *history.Edge) bool {
		if e.To.Identity == nil {
			return false
		}
		ports, _ := e.To.Identity.PortsAt(e.Last)
		return names(ports, "dns", s) || names(ports, "dns-tcp", s)
	})
}

// podRules joins the peers that are pods and use the same ports.
func (a *assembly) podRules(n needs) []built {
	type joined struct {
		built
		groups []*group
	}
	byPorts := make(map[string]*joined)
	for p, services := range n {
		if p.group == nil {
			continue
		}
		pods := a.pods
		if a.egress {
			pods = p.group.present
		}
		if a.coarse {
			pods = nil
		}
		terms := termsOf(services, pods, a.portSlack)
		if a.coarse && p.group.namespace == a.namespace {
			terms = nil // pods of one namespace are not kept apart
		}
		key := fmt.Sprint(terms)
		j := byPorts[key]
		if j == nil {
			j = &joined{built: built{ports: policyPorts(terms)}}
			byPorts[key] = j
		}
		j.groups = append(j.groups, p.group)
		dns := false
		for s, edges := range services {
			j.edges = append(j.edges, edges...)
			dns = dns || isDNS(s, edges)
		}
		if dns {
			j.reasons = append(j.reasons, "DNS, over UDP and TCP")
		}
	}
	var out []built
	for key, j := range byPorts {
		slices.SortFunc(j.groups, compareGroups)
		for _, g := range j.groups {
			j.peers = append(j.peers, a.peer(g))
			if !a.coarse { // there one group stands for its namespace
				j.reasons = append(j.reasons, strings.Join(g.names(), ", "))
			}
		}
		slices.Sort(j.reasons)
		j.reasons = slices.Compact(j.reasons)
		j.order = "0 " + j.groups[0].namespace + " " + j.groups[0].name() + " " + key
		out = append(out, j.built)
	}
	return out
}

func compareGroups(a, b *group) int {
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.workloads[0].Kind, b.workloads[0].Kind), strings.Compare(a.workloads[0].Name, b.workloads[0].Name))
}

// peer names a group's pods, and their namespace unless it is the policy's own.
func (a *assembly) peer(g *group) networkingv1.NetworkPolicyPeer {
	p := networkingv1.NetworkPolicyPeer{PodSelector: g.selector}
	if g.namespace != a.namespace {
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{metadataName: g.namespace}}
	}
	switch {
	case a.coarse && p.NamespaceSelector == nil:
		p.PodSelector = &metav1.LabelSelector{}
	case a.coarse:
		p.PodSelector = nil
	}
	return p
}

// addressRules joins the addresses of each kind and region, and the ports that
// are used at the same addresses.
func (a *assembly) addressRules(n needs) []built {
	all := regions()
	type class struct {
		kind   addressKind
		region int
	}
	uses := make(map[class]map[service]map[netip.Prefix]party)
	for p, services := range n {
		if p.group != nil {
			continue
		}
		c := class{p.kind, regionOf(all, p.prefix.Addr())}
		for s := range services {
			if uses[c] == nil {
				uses[c] = make(map[service]map[netip.Prefix]party)
			}
			if uses[c][s] == nil {
				uses[c][s] = make(map[netip.Prefix]party)
			}
			uses[c][s][p.prefix] = p
		}
	}
	var out []built
	for c, services := range uses {
		type same struct {
			services map[service][]*history.Edge
			parties  map[netip.Prefix]party
		}
		byAddresses := make(map[string]*same)
		for s, parties := range services {
			cidrs := a.addresses(s).join(slices.Collect(maps.Keys(parties)))
			key := fmt.Sprint(cidrs)
			if byAddresses[key] == nil {
				byAddresses[key] = &same{services: make(map[service][]*history.Edge), parties: make(map[netip.Prefix]party)}
			}
			for prefix, p := range parties {
				byAddresses[key].parties[prefix] = p
				byAddresses[key].services[s] = append(byAddresses[key].services[s], n[p][s]...)
			}
		}
		for key, u := range byAddresses {
			b := built{ports: policyPorts(termsOf(u.services, a.pods, a.portSlack)), order: fmt.Sprintf("1 %d %02d %s", c.kind, c.region, key)}
			for _, text := range strings.Fields(strings.Trim(key, "[]")) {
				b.peers = append(b.peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: text}})
			}
			for _, edges := range u.services {
				b.edges = append(b.edges, edges...)
			}
			b.reasons = a.addressReasons(u.parties, b.edges)
			b.order += fmt.Sprint(termsOf(u.services, nil, 0))
			out = append(out, b)
		}
	}
	return out
}
