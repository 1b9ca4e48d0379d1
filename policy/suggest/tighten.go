package suggest

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/unused"
)

// tighten narrows the rules of the present policies to what was seen. A rule
// that is no wider than that stays as it is written.
func (r *run) tighten() error {
	selection := history.NewSelection(r.h.Identities)
	for _, p := range r.h.Policies {
		if !r.o.wantsNamespace(p.Namespace) || !r.narrows(p, selection) {
			continue
		}
		t := &tightening{run: r, policy: p, selection: selection, subjects: selection.Subjects(p.NetworkPolicy)}
		if suggested, changed := t.narrow(); changed {
			r.out.Policies = append(r.out.Policies, suggested)
		}
	}
	return r.neverUsed()
}

// narrows reports whether a policy selects workloads of the scope, and nothing else.
func (r *run) narrows(p *history.Policy, selection *history.Selection) bool {
	subjects := selection.Subjects(p.NetworkPolicy)
	for _, i := range subjects {
		for _, w := range i.Workloads {
			if !r.o.wants(w) {
				r.notice("policy-kept", p.Namespace, "", fmt.Sprintf("NetworkPolicy %s/%s stays: it selects %s too", p.Namespace, p.Name, w), "")
				return false
			}
		}
	}
	if len(subjects) == 0 {
		r.notice("policy-idle", p.Namespace, "", fmt.Sprintf("NetworkPolicy %s/%s stays: it selects no pod that was seen", p.Namespace, p.Name), "")
	}
	return len(subjects) > 0
}

// neverUsed lists what was dropped because nothing used it.
func (r *run) neverUsed() error {
	span := r.h.Until.Sub(r.h.Since)
	if span <= 0 {
		span = time.Second
	}
	report, err := unused.Find(r.h, unused.Options{For: span, Namespaces: r.o.Namespaces})
	if err != nil {
		return err
	}
	r.out.Unused = report.Rules
	return nil
}

// tightening narrows one policy.
type tightening struct {
	*run
	policy    *history.Policy
	selection *history.Selection
	subjects  []*history.Identity
}

// narrow returns the policy with its narrowed rules, and whether any is.
func (t *tightening) narrow() (Policy, bool) {
	object := t.policy.DeepCopy()
	object.APIVersion, object.Kind = "networking.k8s.io/v1", "NetworkPolicy"
	object.ManagedFields, object.ResourceVersion, object.UID, object.Generation = nil, "", "", 0
	out := Policy{Object: object}
	for _, i := range t.subjects {
		for _, w := range i.Workloads {
			if !slices.Contains(out.Workloads, w.String()) {
				out.Workloads = append(out.Workloads, w.String())
			}
		}
	}
	slices.Sort(out.Workloads)
	changed := false
	for _, d := range t.directions() {
		egress := d == flow.DirectionEgress
		kind := networkingv1.PolicyTypeIngress
		if egress {
			kind = networkingv1.PolicyTypeEgress
		}
		if slices.Contains(policyTypes(t.policy.NetworkPolicy), kind) {
			changed = t.narrowSide(&out, egress) || changed
		}
	}
	return out, changed
}

// existingRule is a rule of either direction.
type existingRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func (t *tightening) rules(egress bool) []existingRule {
	var out []existingRule
	if egress {
		for _, r := range t.policy.Spec.Egress {
			out = append(out, existingRule{r.To, r.Ports})
		}
		return out
	}
	for _, r := range t.policy.Spec.Ingress {
		out = append(out, existingRule{r.From, r.Ports})
	}
	return out
}

func (t *tightening) narrowSide(p *Policy, egress bool) (changed bool) {
	var rules []built
	doubt := t.doubt(egress)
	for n, rule := range t.rules(egress) {
		used := t.lessonsOf(egress, n)
		if doubt == policy.ReasonAddress && rule.hasBlock() || doubt != policy.ReasonNone && doubt != policy.ReasonAddress {
			rules = append(rules, built{peers: rule.peers, ports: rule.ports, reasons: []string{"as it was: it is not known whether traffic needs it (" + doubt.String() + ")"}})
			t.notice("rule-kept", t.policy.Namespace, "", fmt.Sprintf("NetworkPolicy %s/%s stays as it is in %s: of some traffic it is not known whether it allows it (%s)",
				t.policy.Namespace, t.policy.Name, ruleName(egress, n), doubt), "")
			continue
		}
		if len(used) == 0 {
			changed = true
			continue
		}
		var edges []*history.Edge
		for _, l := range used {
			edges = append(edges, l.edge)
		}
		if t.exact(rule, used, egress) {
			rules = append(rules, built{peers: rule.peers, ports: rule.ports, edges: edges, reasons: []string{"as it was: it is no wider than what was seen"}})
			continue
		}
		changed = true
		rules = append(rules, t.narrowed(used, egress)...)
	}
	if egress {
		p.Object.Spec.Egress = nil
	} else {
		p.Object.Spec.Ingress = nil
	}
	if len(p.Object.Spec.PolicyTypes) == 0 {
		p.Object.Spec.PolicyTypes = policyTypes(t.policy.NetworkPolicy)
	}
	p.fill(egress, rules)
	return changed
}

// hasBlock reports whether addresses decide, and not labels only.
func (r *existingRule) hasBlock() bool {
	return slices.ContainsFunc(r.peers, func(p networkingv1.NetworkPolicyPeer) bool { return p.IPBlock != nil })
}

// doubt is why it is not known of some traffic whether the policy allows it:
// of pods, edges have no addresses.
func (t *tightening) doubt(egress bool) policy.Reason {
	doubt := policy.ReasonNone
	for _, l := range t.learner.lessons {
		side := l.side(egress)
		if side.Verdict != flow.VerdictUnknown || !slices.ContainsFunc(side.By, t.isOwn) {
			continue
		}
		if doubt == policy.ReasonNone || side.Reason != policy.ReasonAddress {
			doubt = side.Reason
		}
	}
	return doubt
}

func (t *tightening) isOwn(ref flow.PolicyRef) bool {
	return ref.Namespace == t.policy.Namespace && ref.Name == t.policy.Name
}

// side is what the present policies say of one side of a lesson.
func (l *lesson) side(egress bool) *policy.Side {
	if egress {
		return &l.now.Egress
	}
	return &l.now.Ingress
}

// lessonsOf are the lessons that a rule is the policy's first to allow.
func (t *tightening) lessonsOf(egress bool, n int) []lesson {
	name := ruleName(egress, n)
	var out []lesson
	for _, l := range t.learner.lessons {
		side := l.side(egress)
		at := slices.IndexFunc(side.Allowed, t.isOwn)
		if at >= 0 && side.Allowed[at].Rule == name {
			out = append(out, l)
		}
	}
	return out
}

func ruleName(egress bool, n int) string {
	if egress {
		return "egress[" + strconv.Itoa(n) + "]"
	}
	return "ingress[" + strconv.Itoa(n) + "]"
}

// narrowed makes rules of what was seen.
func (t *tightening) narrowed(used []lesson, egress bool) []built {
	n := make(needs)
	for _, l := range used {
		peer := l.seen
		if egress {
			peer = l.to
		}
		n.add(peer, service{l.edge.Protocol, l.edge.Port}, l.edge)
	}
	t.markPeers(n)
	a := t.assembly(t.policy.Namespace, nil, egress)
	a.coarse = false
	if !egress {
		a.pods = t.subjects
	}
	a.mayAsk = func(edges []*history.Edge, s service) bool { return t.allows(edges, s, egress) }
	return a.rules(n)
}

// allows reports whether the policy allows another port to the ends of edges.
func (t *tightening) allows(edges []*history.Edge, s service, egress bool) bool {
	for _, e := range edges {
		c := t.h.Connection(e)
		c.Protocol, c.Port = s.protocol, s.port
		d := t.run.present.Decide(&c)
		side := &d.Ingress
		if egress {
			side = &d.Egress
		}
		if !slices.ContainsFunc(side.Allowed, t.isOwn) {
			return false
		}
	}
	return true
}

// exact reports whether all that a rule allows was seen: each of its peers at
// each of its ports.
func (t *tightening) exact(rule existingRule, used []lesson, egress bool) bool {
	if len(rule.peers) == 0 || len(rule.ports) == 0 {
		return false
	}
	seen := make(map[string]bool)
	for _, l := range used {
		for _, text := range t.peerTexts(l, egress) {
			seen[fmt.Sprint(text, l.edge.Protocol, l.edge.Port)] = true
		}
	}
	for _, p := range rule.ports {
		protocol, err := flow.ParseProtocol("tcp")
		if p.Protocol != nil {
			protocol, err = flow.ParseProtocol(string(*p.Protocol))
		}
		if err != nil || p.Port == nil || p.EndPort != nil || p.Port.StrVal != "" {
			return false
		}
		for i := range rule.peers {
			for _, text := range t.selected(&rule.peers[i]) {
				if !seen[fmt.Sprint(text, protocol, p.Port.IntVal)] {
					return false
				}
			}
		}
	}
	return true
}

// peerTexts names a lesson's peer as selected does.
func (t *tightening) peerTexts(l lesson, egress bool) []string {
	end, p := l.edge.From, l.seen
	if egress {
		end, p = l.edge.To, l.to
	}
	if p.group == nil {
		return []string{p.prefix.String()}
	}
	return []string{end.Workload.String()}
}

// selected names all that a peer selects: workloads, or its CIDR.
func (t *tightening) selected(p *networkingv1.NetworkPolicyPeer) []string {
	if p.IPBlock != nil {
		return []string{p.IPBlock.CIDR}
	}
	var out []string
	for _, i := range t.selection.Peers(t.policy.Namespace, p) {
		for _, w := range i.Workloads {
			out = append(out, w.String())
		}
	}
	if len(out) == 0 {
		out = append(out, "nothing that was seen")
	}
	return out
}
