package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
)

// Patch changes one policy, or makes one, so that a side allows a connection.
type Patch struct {
	Policy flow.PolicyRef `json:"policy"`
	// New says that the policy is a new one, and YAML all of it. It is where
	// the policies that isolate the pod select every pod of the namespace: a
	// rule there would open all of them.
	New bool `json:"new,omitempty"`
	// Operations are a JSON patch (RFC 6902), for kubectl patch --type=json.
	Operations []Operation `json:"operations,omitempty"`
	// YAML is what is added, for people who edit the policy.
	YAML string `json:"yaml"`
}

// Operation is one operation of a JSON patch.
type Operation struct {
	Op    string `json:"op"`   // add
	Path  string `json:"path"` // /spec/ingress/0/ports/-
	Value any    `json:"value"`
}

var peersNames = [2]string{"to", "from"}

// patch finds the smallest change, the one that opens least: one port or one
// peer more in the nearest rule if only one of them fails, else one rule more.
func (a *attempt) patch(policies *selection, nearest *miss) *Patch {
	if nearest != nil && nearest.peers == nil && !nearest.open {
		path := fmt.Sprintf("/spec/%s/%d/ports/-", directionNames[a.direction], nearest.index)
		return addition(nearest.policy, a.direction, path, a.addedPort())
	}
	peer := a.addedPeer(nearest)
	if peer == nil {
		return nil
	}
	if nearest != nil && nearest.ports == nil {
		path := fmt.Sprintf("/spec/%s/%d/%s/-", directionNames[a.direction], nearest.index, peersNames[a.direction])
		return addition(nearest.policy, a.direction, path, *peer)
	}
	if target := narrowest(policies, nearest); target != nil {
		return a.ruleIn(target, *peer)
	}
	return a.newPolicy(*peer)
}

// narrowest chooses the policy for one rule more; nil if all of them select
// every pod of the namespace.
func narrowest(policies *selection, nearest *miss) *compiled {
	if nearest != nil && len(nearest.policy.pods.requirements) > 0 {
		return nearest.policy
	}
	var best *compiled
	for _, p := range policies.selected() {
		n := len(p.policy.pods.requirements)
		if p.selects.is == yes && n > 0 && (best == nil || n > len(best.pods.requirements)) {
			best = p.policy
		}
	}
	return best
}

func addition(p *compiled, direction int, path string, value any) *Patch {
	// People see the item in its list.
	text, err := yaml.Marshal([]any{value})
	if err != nil {
		return nil // API types always have a YAML form
	}
	return &Patch{Policy: p.refs[direction], Operations: []Operation{{"add", path, value}}, YAML: string(text)}
}

func (a *attempt) ruleIn(p *compiled, peer networkingv1.NetworkPolicyPeer) *Patch {
	path := "/spec/" + directionNames[a.direction]
	if a.direction == egress {
		rule := a.egressRule(peer)
		if len(p.object.Spec.Egress) > 0 {
			return addition(p, egress, path+"/-", rule)
		}
		return addition(p, egress, path, []networkingv1.NetworkPolicyEgressRule{rule}).unwrapped()
	}
	rule := a.ingressRule(peer)
	if len(p.object.Spec.Ingress) > 0 {
		return addition(p, ingress, path+"/-", rule)
	}
	return addition(p, ingress, path, []networkingv1.NetworkPolicyIngressRule{rule}).unwrapped()
}

// unwrapped is the patch of a whole list: its YAML needs no list around it.
func (p *Patch) unwrapped() *Patch {
	if text, err := yaml.Marshal(p.Operations[0].Value); err == nil {
		p.YAML = string(text)
	}
	return p
}

func (a *attempt) ingressRule(peer networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{
		From: []networkingv1.NetworkPolicyPeer{peer}, Ports: []networkingv1.NetworkPolicyPort{a.addedPort()},
	}
}

func (a *attempt) egressRule(peer networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyEgressRule {
	return networkingv1.NetworkPolicyEgressRule{
		To: []networkingv1.NetworkPolicyPeer{peer}, Ports: []networkingv1.NetworkPolicyPort{a.addedPort()},
	}
}

func (a *attempt) newPolicy(peer networkingv1.NetworkPolicyPeer) *Patch {
	p := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	p.Namespace = a.subject.namespace()
	name := fmt.Sprintf("allow-%s-%s", directionNames[a.direction], a.connection.Protocol)
	if a.connection.Port != 0 {
		name += fmt.Sprintf("-%d", a.connection.Port)
	}
	p.Name = a.freeName(name)
	p.Spec.PodSelector = metav1.LabelSelector{MatchLabels: stableLabels(a.subject.Class)}
	if a.direction == egress {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{a.egressRule(peer)}
	} else {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{a.ingressRule(peer)}
	}
	text, err := yaml.Marshal(p)
	if err != nil {
		return nil // API types always have a YAML form
	}
	ref := flow.PolicyRef{Kind: "NetworkPolicy", Namespace: p.Namespace, Name: p.Name, Side: directionNames[a.direction]}
	return &Patch{Policy: ref, New: true, YAML: string(text)}
}

// freeName is a name that no policy of the pod's namespace has.
func (a *attempt) freeName(name string) string {
	free, taken := name, a.snapshot.policies[a.subject.namespace()]
	for i := 2; taken != nil; i++ {
		if _, found := find(taken.list, free); !found {
			break
		}
		free = fmt.Sprintf("%s-%d", name, i)
	}
	return free
}

// addedPort allows the connection's port; all ports of its protocol if the
// port is not known.
func (a *attempt) addedPort() networkingv1.NetworkPolicyPort {
	protocol := corev1.Protocol(strings.ToUpper(a.connection.Protocol.String()))
	p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
	if a.connection.Port != 0 {
		number := intstr.FromInt32(int32(a.connection.Port))
		p.Port = &number
	}
	return p
}

// addedPeer allows the other end and as little else as can be; nil if nothing
// is known that a rule could name.
func (a *attempt) addedPeer(nearest *miss) *networkingv1.NetworkPolicyPeer {
	if a.peer.kind() == flow.EndpointPod {
		return a.addedPods(nearest)
	}
	addr := a.peer.Addr.Unmap().WithZone("")
	if !addr.IsValid() || a.peer.kind() == flow.EndpointService {
		return nil
	}
	cidr := netip.PrefixFrom(addr, addr.BitLen()).String()
	return &networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}
}

func (a *attempt) addedPods(nearest *miss) *networkingv1.NetworkPolicyPeer {
	class := a.peer.Class
	labels := stableLabels(class)
	if nearest != nil && nearest.hint != nil {
		if like := labelsLike(nearest.hint, labels); like != nil {
			labels = like
		}
	}
	p := &networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
	if class.namespace != a.subject.namespace() {
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{metadataName: class.namespace}}
	}
	return p
}

// labelsLike are the labels that a selector speaks of, with the pod's own
// values; nil if the pod has not all of them.
func labelsLike(s *selector, labels map[string]string) map[string]string {
	var out map[string]string
	for i := range s.requirements {
		key := s.requirements[i].key
		value, has := labels[key]
		if !has {
			return nil
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[key] = value
	}
	return out
}

// stableLabels are a class's labels without those that controllers give to
// each copy or generation of a pod: a rule that names them breaks with the
// next rollout.
func stableLabels(c *Class) map[string]string {
	volatile := []string{
		"pod-template-hash", "pod-template-generation", "controller-revision-hash", "controller-uid", "job-name",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
	}
	out := make(map[string]string)
	for k, v := range c.labels {
		if !slices.Contains(volatile, k) && !strings.HasPrefix(k, "batch.kubernetes.io/") {
			out[k] = v
		}
	}
	return out
}
