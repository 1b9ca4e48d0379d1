package policy

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// attempt is a connection that one side denies.
type attempt struct {
	snapshot      *Snapshot
	direction     int
	subject, peer *End
	connection    *Connection
}

// miss is a rule that does not allow an attempt.
type miss struct {
	policy *compiled
	rule   *rule
	index  int
	ports  []Failure
	peers  []Failure
	hint   *selector // of the peer that came closest, if it selects pods
	// open says that the rule is for so many that one port more in it would
	// open that port to all of them.
	open bool
	cost int
}

// Costs of what fails. One thing costs one, unless no label or port could mend
// it, or the rest of the rule matches only because it matches nearly everything:
// a rule for DNS to anywhere is not close to a connection to a database.
const (
	costOne      = 1
	costOpenPort = 2  // a port, and the rule is for all pods of namespaces
	costAnyPort  = 4  // a port, and the rule is for everyone
	costBlock    = 3  // a pod outside of a block: its address is not its own choice
	costNotAPod  = 10 // a selector, and the end is no pod
	costInvalid  = 20 // an item that cannot be understood
)

func (m *miss) failures() []Failure { return slices.Concat(m.peers, m.ports) }

// nearest finds the rule that came closest; nil if there is no rule. Of two
// that are equally close it is the one where only the port fails, then the
// first by policy and index.
func (a *attempt) nearest(policies *selection) *miss {
	var best *miss
	for _, p := range policies.selected() {
		if p.selects.is != yes {
			continue
		}
		for index, r := range p.rules {
			m := a.miss(p.policy, r, index)
			if best == nil || m.cost < best.cost || m.cost == best.cost && len(m.peers) < len(best.peers) {
				best = m
			}
		}
	}
	return best
}

func (a *attempt) question() *question {
	q := &question{
		protocol: a.connection.Protocol, port: a.connection.Port, dst: &a.connection.Dst, peer: a.peer,
		place: a.snapshot.table.place(a.peer.Addr), table: a.snapshot.table,
	}
	if a.peer.kind() == flow.EndpointPod {
		q.class = a.snapshot.class(a.peer.Class)
	}
	return q
}

func (a *attempt) miss(p *compiled, r *rule, index int) *miss {
	m := &miss{policy: p, rule: r, index: index}
	q := a.question()
	peers := r.matchPeers(q).is == yes
	if !peers {
		m.peers, m.hint, m.cost = a.peerFailures(r)
	}
	if r.matchPorts(q).is == yes {
		return m
	}
	m.ports = []Failure{a.portFailure(r)}
	m.open = peers && !a.specific(r, q)
	switch {
	case !m.open:
		m.cost += costOne
	case r.everyone || r.everyAddress:
		m.cost += costAnyPort
	default:
		m.cost += costOpenPort
	}
	return m
}

// specific reports whether a peer that matches says more than "all".
func (a *attempt) specific(r *rule, q *question) bool {
	groups, blocks := 0, 0 // indexes into r.groups and r.blocks
	for i := range r.peers {
		switch p := &r.peers[i]; {
		case p.group != nil:
			n := len(p.group.pods.requirements)
			if p.group.namespaces != nil {
				n += len(p.group.namespaces.requirements)
			}
			if n > 0 && q.class != nil && q.class.members.of(r.groups[groups]).is == yes {
				return true
			}
			groups++
		case p.block != nil:
			if p.block.cidr.Bits() > 0 && q.place != placeUnknown && q.table.blocks[r.blocks[blocks]].holds(q.place) {
				return true
			}
			blocks++
		}
	}
	return false
}

func (a *attempt) portFailure(r *rule) Failure {
	field := r.ports[0].field
	if len(r.ports) > 1 {
		field = field[:strings.LastIndexByte(field, '[')]
	}
	wanted := make([]string, 0, len(r.ports))
	otherProtocol := false
	for i := range r.ports {
		otherProtocol = otherProtocol || r.ports[i].protocol != a.connection.Protocol
	}
	for i := range r.ports {
		wanted = append(wanted, a.wantedPort(&r.ports[i], otherProtocol))
	}
	const most = 4
	if len(wanted) > most {
		wanted = append(wanted[:most], fmt.Sprintf("and %d more", len(wanted)-most))
	}
	has := "port not known"
	if a.connection.Port != 0 {
		has = fmt.Sprintf("port %d", a.connection.Port)
	}
	if otherProtocol {
		has = a.connection.Protocol.String() + " " + has
	}
	return Failure{Field: field, Text: fmt.Sprintf("%s, rule allows %s", has, strings.Join(wanted, ", "))}
}

// wantedPort says what a port item allows.
func (a *attempt) wantedPort(p *port, withProtocol bool) string {
	var text string
	switch {
	case p.invalid:
		return "what " + p.field + " cannot say"
	case p.name != "":
		text = p.name + " (" + a.resolved(p) + ")"
	case p.first == 0:
		return "all " + p.protocol.String() + " ports"
	case p.first == p.last:
		text = fmt.Sprint(p.first)
	default:
		text = fmt.Sprintf("%d to %d", p.first, p.last)
	}
	if withProtocol {
		return p.protocol.String() + " " + text
	}
	return text
}

// resolved says what a port name means at the destination.
func (a *attempt) resolved(p *port) string {
	dst := &a.connection.Dst
	if dst.kind() != flow.EndpointPod {
		return "which only pods can have"
	}
	var numbers []string
	for _, n := range dst.Class.ports {
		if n.Name == p.name && n.Protocol == p.protocol {
			numbers = append(numbers, fmt.Sprint(n.Port))
		}
	}
	switch {
	case dst.Class.portsUnknown:
		return fmt.Sprintf("the port names of %s are not known", dst)
	case len(numbers) == 0:
		return fmt.Sprintf("no %s port of %s has that name", p.protocol, dst)
	}
	return fmt.Sprintf("%s at %s", strings.Join(numbers, " and "), dst)
}

// peerFailures says what fails of the peer that came closest.
func (a *attempt) peerFailures(r *rule) (fails []Failure, hint *selector, cost int) {
	for i := range r.peers {
		p := &r.peers[i]
		f, c := a.peerFailure(p)
		if fails != nil && c >= cost {
			continue
		}
		fails, cost, hint = f, c, nil
		if p.group != nil {
			hint = p.group.pods
		}
	}
	return fails, hint, cost
}

func (a *attempt) peerFailure(p *peer) ([]Failure, int) {
	switch {
	case p.group == nil && p.block == nil:
		return []Failure{{p.field, "the item is not valid"}}, costInvalid
	case p.block != nil:
		cost := costOne
		if a.peer.kind() == flow.EndpointPod {
			cost = costBlock
		}
		return []Failure{{p.field + ".ipBlock", a.blockFailure(p.block)}}, cost
	case a.peer.kind() == flow.EndpointNode || a.peer.kind() == flow.EndpointOutside:
		return []Failure{{p.field, fmt.Sprintf("%s is no pod, and the item selects pods", a.peer)}}, costNotAPod
	case a.peer.kind() != flow.EndpointPod:
		return []Failure{{p.field, "the item selects pods, and " + a.peer.doubt()}}, costNotAPod
	}
	fails := a.groupFailures(p)
	return fails, costOne * len(fails)
}

func (a *attempt) blockFailure(b *block) string {
	addr := a.peer.Addr.Unmap()
	switch {
	case !addr.IsValid():
		return fmt.Sprintf("the address of %s is not known, rule allows %s", a.peer, b.cidr)
	case !b.cidr.Contains(addr):
		return fmt.Sprintf("address %s is outside of %s", addr, b.cidr)
	}
	for _, e := range b.except {
		if e.Contains(addr) {
			return fmt.Sprintf("address %s is in %s, which is excepted from %s", addr, e, b.cidr)
		}
	}
	return fmt.Sprintf("whether %s counts as a part of %s is not known", addr, b.cidr)
}

func (a *attempt) groupFailures(p *peer) []Failure {
	class, g := a.peer.Class, p.group
	var fails []Failure
	switch {
	case g.namespaces == nil && g.namespace != class.namespace:
		fails = append(fails, Failure{p.field, fmt.Sprintf("pod %s is in namespace %s, and without a namespaceSelector the item selects pods of %s only", a.peer, class.namespace, g.namespace)})
	case g.namespaces != nil && g.namespaces.matchNamespace(class).is != yes:
		for i := range g.namespaces.requirements {
			r := &g.namespaces.requirements[i]
			if known := class.namespaceKnown || r.key == metadataName; !known {
				fails = append(fails, Failure{p.field + ".namespaceSelector", fmt.Sprintf("it is not known whether namespace %s %s", class.namespace, r)})
			} else if !r.holds(class.namespaceLabels) {
				fails = append(fails, Failure{p.field + ".namespaceSelector", "namespace " + class.namespace + " " + r.failure(class.namespaceLabels)})
			}
		}
	}
	for i := range g.pods.requirements {
		if r := &g.pods.requirements[i]; !r.holds(class.labels) {
			fails = append(fails, Failure{p.field + ".podSelector", "pod " + a.peer.String() + " " + r.failure(class.labels)})
		}
	}
	return fails
}

// String is the requirement as kubectl writes it, with a verb before: has team=a.
func (r *requirement) String() string {
	values := strings.Join(r.values, ", ")
	switch r.op {
	case metav1.LabelSelectorOpIn:
		if len(r.values) == 1 {
			return "has " + r.key + "=" + values
		}
		return "has " + r.key + " in (" + values + ")"
	case metav1.LabelSelectorOpNotIn:
		return "lacks " + r.key + " in (" + values + ")"
	case metav1.LabelSelectorOpExists:
		return "has " + r.key
	}
	return "lacks " + r.key
}

// failure says how labels fail the requirement.
func (r *requirement) failure(labels map[string]string) string {
	value, has := labels[r.key]
	switch r.op {
	case metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpDoesNotExist:
		return fmt.Sprintf("has label %s=%s, which the rule excludes", r.key, value)
	case metav1.LabelSelectorOpExists:
		return "lacks label " + r.key
	}
	text := "lacks label " + strings.TrimPrefix(r.String(), "has ")
	if has {
		text += fmt.Sprintf(", has %s=%s", r.key, value)
	}
	return text
}
