package policy_test

import (
	"net"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The reference reads the policies as the API's documentation does, one
// sentence after the other, for each connection anew. It shares nothing with
// the engine: selectors are apimachinery's, networks are package net's.

// refPod is a pod as the reference knows it.
type refPod struct {
	namespace       string
	namespaceLabels map[string]string // nil: not known
	name            string
	labels          map[string]string
	ports           []corev1.ContainerPort
	portsUnknown    bool
	node            string
	host            bool
	ips             []string
}

// refEnd is an end: a pod, a node, an address outside, a service, or unknown.
type refEnd struct {
	kind string // pod, node, outside, service, unknown, ambiguous
	pod  *refPod
	node string
	ip   string // "" if not known
}

type refConnection struct {
	src, dst refEnd
	seen     *refEnd // after SNAT
	protocol string  // TCP, UDP, SCTP or another
	port     int32   // 0: not known
}

// could says which truth values something could have.
type could struct{ hold, fail bool }

var (
	certainly    = could{hold: true}
	certainlyNot = could{fail: true}
	perhaps      = could{true, true}
)

func surely(b bool) could {
	if b {
		return certainly
	}
	return certainlyNot
}

func (a could) and(b could) could { return could{a.hold && b.hold, a.fail || b.fail} }
func (a could) or(b could) could  { return could{a.hold || b.hold, a.fail && b.fail} }

func (a could) verdict() string {
	switch a {
	case certainly:
		return "allowed"
	case certainlyNot:
		return "denied"
	}
	return "unknown"
}

// refSide is what the reference says of one side.
type refSide struct {
	verdict  string
	isolated bool
	by       []string // policies that could isolate
	allowed  []string // rules that allow, of an allowed connection
}

// refPolicies are policies with apimachinery's selectors beside.
type refPolicies struct {
	list      []*networkingv1.NetworkPolicy
	selectors map[*metav1.LabelSelector]labels.Selector // nil if not valid
	valid     map[*networkingv1.NetworkPolicy]bool
}

func newReference(list []*networkingv1.NetworkPolicy) *refPolicies {
	r := &refPolicies{list, make(map[*metav1.LabelSelector]labels.Selector), make(map[*networkingv1.NetworkPolicy]bool)}
	slices.SortFunc(r.list, func(a, b *networkingv1.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range list {
		r.valid[p] = r.check(p)
	}
	return r
}

// check reads all of a policy and reports whether it is valid.
func (r *refPolicies) check(p *networkingv1.NetworkPolicy) bool {
	valid := r.selector(&p.Spec.PodSelector) && len(p.Spec.PolicyTypes) <= 2
	for _, t := range p.Spec.PolicyTypes {
		valid = valid && (t == "Ingress" || t == "Egress")
	}
	for i := range p.Spec.Ingress {
		valid = r.checkRule(p.Spec.Ingress[i].From, p.Spec.Ingress[i].Ports) && valid
	}
	for i := range p.Spec.Egress {
		valid = r.checkRule(p.Spec.Egress[i].To, p.Spec.Egress[i].Ports) && valid
	}
	return valid
}

func (r *refPolicies) checkRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) bool {
	valid := true
	for i := range peers {
		valid = r.checkPeer(&peers[i]) && valid
	}
	for i := range ports {
		valid = checkPort(&ports[i]) && valid
	}
	return valid
}

func (r *refPolicies) selector(s *metav1.LabelSelector) bool {
	compiled, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		r.selectors[s] = nil
		return false
	}
	r.selectors[s] = compiled
	return true
}

func (r *refPolicies) checkPeer(p *networkingv1.NetworkPolicyPeer) bool {
	valid := true
	if p.PodSelector != nil {
		valid = r.selector(p.PodSelector)
	}
	if p.NamespaceSelector != nil {
		valid = r.selector(p.NamespaceSelector) && valid
	}
	if p.IPBlock != nil {
		return checkBlock(p.IPBlock) && p.PodSelector == nil && p.NamespaceSelector == nil
	}
	return valid && (p.PodSelector != nil || p.NamespaceSelector != nil)
}

func checkBlock(b *networkingv1.IPBlock) bool {
	_, outer, err := net.ParseCIDR(b.CIDR)
	if err != nil {
		return false
	}
	for _, e := range b.Except {
		_, inner, err := net.ParseCIDR(e)
		if err != nil {
			return false
		}
		outerOnes, outerBits := outer.Mask.Size()
		innerOnes, innerBits := inner.Mask.Size()
		if outerBits != innerBits || innerOnes <= outerOnes || !outer.Contains(inner.IP) {
			return false
		}
	}
	return true
}

func checkPort(p *networkingv1.NetworkPolicyPort) bool {
	if p.Protocol != nil && *p.Protocol != "TCP" && *p.Protocol != "UDP" && *p.Protocol != "SCTP" {
		return false
	}
	if p.Port == nil {
		return p.EndPort == nil
	}
	if p.Port.Type == intstr.String {
		return p.EndPort == nil && len(validation.IsValidPortName(p.Port.StrVal)) == 0
	}
	inRange := func(n int32) bool { return n >= 1 && n <= 65535 }
	if !inRange(p.Port.IntVal) {
		return false
	}
	return p.EndPort == nil || inRange(*p.EndPort) && *p.EndPort >= p.Port.IntVal
}

// decide is the reference's answer for both sides.
func (r *refPolicies) decide(c *refConnection) (verdict string, egress, ingress refSide) {
	seen := &c.src
	if c.seen != nil {
		seen = c.seen
	}
	egress = r.side("Egress", &c.src, &c.dst, c)
	ingress = r.side("Ingress", &c.dst, seen, c)
	switch {
	case egress.verdict == "denied" || ingress.verdict == "denied":
		return "denied", egress, ingress
	case egress.verdict == "allowed" && ingress.verdict == "allowed":
		return "allowed", egress, ingress
	}
	return "unknown", egress, ingress
}

func (r *refPolicies) side(direction string, subject, peer *refEnd, c *refConnection) refSide {
	switch subject.kind {
	case "node", "outside":
		return refSide{verdict: "allowed"} // not selected by any policy
	case "pod":
	default:
		return refSide{verdict: "unknown"}
	}
	s := r.byPolicies(direction, subject.pod, peer, c)
	exempt := sameRefPod(&c.src, &c.dst).or(ownRefNode(subject, peer))
	switch {
	case s.verdict != "allowed" && exempt == certainly:
		s.verdict, s.allowed = "allowed", nil
	case s.verdict == "denied" && exempt == perhaps:
		s.verdict = "unknown"
	}
	return s
}

// byPolicies goes through all the worlds that could be: each is a policy set
// of which it is known what it selects and allows.
func (r *refPolicies) byPolicies(direction string, pod *refPod, peer *refEnd, c *refConnection) refSide {
	type world struct{ isolated, allowed bool }
	worlds := map[world]bool{{}: true}
	var out refSide
	var rules, doubtfulRules []string
	for _, p := range r.list {
		selects := r.selects(p, direction, pod)
		if !selects.hold {
			continue
		}
		out.by = append(out.by, p.Namespace+"/"+p.Name)
		out.isolated = out.isolated || selects == certainly
		allows, named := r.allows(p, direction, peer, c)
		if selects == certainly {
			rules = append(rules, named...)
		} else {
			doubtfulRules = append(doubtfulRules, named...)
		}
		next := make(map[world]bool)
		for w := range worlds {
			if selects.fail {
				next[w] = true
			}
			if allows.hold {
				next[world{true, true}] = true
			}
			if allows.fail {
				next[world{true, w.allowed}] = true
			}
		}
		worlds = next
	}
	var passes could
	for w := range worlds {
		if !w.isolated || w.allowed {
			passes.hold = true
		} else {
			passes.fail = true
		}
	}
	out.verdict = passes.verdict()
	if len(out.by) > 0 && !slices.Contains([]string{"TCP", "UDP", "SCTP"}, c.protocol) {
		out.verdict = "unknown"
	}
	if out.verdict == "allowed" {
		out.allowed = rules
		if !out.isolated {
			out.allowed = doubtfulRules
		}
	}
	return out
}

// selects reports whether a policy isolates a pod. Whether an invalid one does
// is not known.
func (r *refPolicies) selects(p *networkingv1.NetworkPolicy, direction string, pod *refPod) could {
	if p.Namespace != pod.namespace {
		return certainlyNot
	}
	selects := certainly
	if !r.valid[p] {
		selects = perhaps
	}
	return selects.and(hasType(p, direction)).and(r.matches(&p.Spec.PodSelector, pod.labels))
}

func hasType(p *networkingv1.NetworkPolicy, direction string) could {
	if len(p.Spec.PolicyTypes) == 0 {
		return surely(direction == "Ingress" || len(p.Spec.Egress) > 0)
	}
	has := certainlyNot
	for _, t := range p.Spec.PolicyTypes {
		switch {
		case string(t) == direction:
			return certainly
		case t != "Ingress" && t != "Egress":
			has = perhaps
		}
	}
	return has
}

func (r *refPolicies) matches(s *metav1.LabelSelector, set map[string]string) could {
	if r.selectors[s] == nil {
		return perhaps
	}
	return surely(r.selectors[s].Matches(labels.Set(set)))
}

// allows reports whether a policy's rules allow a connection, and which do.
func (r *refPolicies) allows(p *networkingv1.NetworkPolicy, direction string, peer *refEnd, c *refConnection) (could, []string) {
	any, named := certainlyNot, []string(nil)
	rule := func(i int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		matches := r.anyPeer(p, peers, peer).and(anyPort(ports, &c.dst, c))
		if matches == certainly {
			named = append(named, p.Namespace+"/"+p.Name+" "+strings.ToLower(direction)+"["+string(rune('0'+i))+"]")
		}
		any = any.or(matches)
	}
	if direction == "Ingress" {
		for i := range p.Spec.Ingress {
			rule(i, p.Spec.Ingress[i].From, p.Spec.Ingress[i].Ports)
		}
	} else {
		for i := range p.Spec.Egress {
			rule(i, p.Spec.Egress[i].To, p.Spec.Egress[i].Ports)
		}
	}
	return any, named
}

func (r *refPolicies) anyPeer(p *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, end *refEnd) could {
	if len(peers) == 0 {
		return certainly
	}
	any := certainlyNot
	all4, all6 := false, false
	for i := range peers {
		if b := peers[i].IPBlock; b != nil && r.checkPeer(&peers[i]) && len(b.Except) == 0 {
			all4 = all4 || strings.HasSuffix(b.CIDR, "/0") && !strings.Contains(b.CIDR, ":")
			all6 = all6 || strings.HasSuffix(b.CIDR, "/0") && strings.Contains(b.CIDR, ":")
		}
		any = any.or(r.peer(p, &peers[i], end))
	}
	if all4 && all6 {
		return certainly // whatever the address is
	}
	return any
}

func (r *refPolicies) peer(p *networkingv1.NetworkPolicy, peer *networkingv1.NetworkPolicyPeer, end *refEnd) could {
	switch {
	case peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil):
		return perhaps
	case peer.IPBlock != nil:
		return inBlock(peer.IPBlock, end)
	case peer.PodSelector == nil && peer.NamespaceSelector == nil:
		return perhaps
	case end.kind == "node" || end.kind == "outside":
		return certainlyNot
	case end.kind != "pod":
		return perhaps
	}
	matches := surely(p.Namespace == end.pod.namespace)
	if peer.NamespaceSelector != nil {
		matches = r.inNamespace(peer.NamespaceSelector, end.pod)
	}
	if peer.PodSelector != nil {
		matches = matches.and(r.matches(peer.PodSelector, end.pod.labels))
	}
	return matches
}

// inNamespace knows kubernetes.io/metadata.name even where it knows no labels:
// it then asks each requirement alone.
func (r *refPolicies) inNamespace(s *metav1.LabelSelector, pod *refPod) could {
	set := map[string]string{}
	for k, v := range pod.namespaceLabels {
		set[k] = v
	}
	set["kubernetes.io/metadata.name"] = pod.namespace
	if pod.namespaceLabels != nil || r.selectors[s] == nil {
		return r.matches(s, set)
	}
	all := certainly
	requirements, _ := r.selectors[s].Requirements()
	for _, q := range requirements {
		if q.Key() != "kubernetes.io/metadata.name" {
			all = all.and(perhaps)
			continue
		}
		all = all.and(surely(q.Matches(labels.Set(set))))
	}
	return all
}

func inBlock(b *networkingv1.IPBlock, end *refEnd) could {
	if !checkBlock(b) || end.kind == "service" || end.ip == "" {
		return perhaps
	}
	ip := net.ParseIP(end.ip)
	_, outer, _ := net.ParseCIDR(b.CIDR)
	if !outer.Contains(ip) {
		return certainlyNot
	}
	for _, e := range b.Except {
		if _, inner, _ := net.ParseCIDR(e); inner.Contains(ip) {
			return certainlyNot
		}
	}
	return certainly
}

func anyPort(ports []networkingv1.NetworkPolicyPort, dst *refEnd, c *refConnection) could {
	if len(ports) == 0 {
		return certainly
	}
	any := certainlyNot
	for i := range ports {
		any = any.or(onPort(&ports[i], dst, c))
	}
	return any
}

func onPort(p *networkingv1.NetworkPolicyPort, dst *refEnd, c *refConnection) could {
	if !checkPort(p) {
		return perhaps
	}
	protocol := "TCP"
	if p.Protocol != nil {
		protocol = string(*p.Protocol)
	}
	switch {
	case protocol != c.protocol:
		return certainlyNot
	case p.Port == nil:
		return certainly
	case p.Port.Type == intstr.String:
		return onNamedPort(p.Port.StrVal, dst, c)
	case c.port == 0:
		return perhaps
	}
	last := p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	return surely(c.port >= p.Port.IntVal && c.port <= last)
}

func onNamedPort(name string, dst *refEnd, c *refConnection) could {
	switch {
	case dst.kind == "node" || dst.kind == "outside":
		return certainlyNot
	case dst.kind != "pod" || dst.pod.portsUnknown:
		return perhaps
	}
	any := certainlyNot
	for _, p := range dst.pod.ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		if p.Name == name && protocol == c.protocol {
			if c.port == 0 {
				return perhaps
			}
			any = any.or(surely(p.ContainerPort == c.port))
		}
	}
	return any
}

func sameRefPod(a, b *refEnd) could {
	return surely(a.kind == "pod" && b.kind == "pod" && a.pod == b.pod)
}

func ownRefNode(a, b *refEnd) could {
	switch {
	case a.kind == "pod" && b.kind == "node":
		if a.node == "" || b.node == "" {
			return perhaps
		}
		return surely(a.node == b.node)
	case a.kind == "node" && b.kind == "pod":
		return ownRefNode(b, a)
	}
	return certainlyNot
}
