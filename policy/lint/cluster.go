package lint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

func noDefaultDenyIngress(v *view) { v.noDefaultDeny(ingress) }
func noDefaultDenyEgress(v *view)  { v.noDefaultDeny(egress) }

// noDefaultDeny finds namespaces with pods of which no policy isolates all.
// The system's own namespaces are left alone.
func (v *view) noDefaultDeny(s side) {
	denied := make(map[string]bool)
	for _, p := range v.policies {
		if p.selector == nil || !p.selector.Empty() || !isolates(p.NetworkPolicy, s) {
			continue
		}
		everything := func(r policyRule) bool { return len(r.peers) == 0 && len(r.ports) == 0 }
		if !slices.ContainsFunc(p.allowing(s), everything) {
			denied[p.Namespace] = true
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(v.pods)) {
		if denied[ns] || strings.HasPrefix(ns, "kube-") {
			continue
		}
		open := 0
		for _, pod := range v.pods[ns] {
			if !pod.Spec.HostNetwork && !v.isolated(pod, s) {
				open++
			}
		}
		message := fmt.Sprintf("no policy isolates %s of every pod: a new pod is open until one selects it (%d of %d are)", lower(s), open, len(v.pods[ns]))
		v.in("Namespace", "", ns)("", message, fmt.Sprintf("add a policy with podSelector: {} and policyTypes: [%s], and rules for what is needed", s))
	}
}

func lower(s side) string { return strings.ToLower(string(s)) }

func (v *view) isolated(pod *corev1.Pod, s side) bool {
	return slices.ContainsFunc(v.policies, func(p *policy) bool {
		return p.Namespace == pod.Namespace && isolates(p.NetworkPolicy, s) && slices.Contains(p.selected, pod)
	})
}

func labelsText(l map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		out = append(out, k+"="+l[k])
	}
	return strings.Join(out, ",")
}

// solution is one network solution that the objects show.
type solution struct {
	name            string
	kind, ns, where string // the object that shows it
	enforces        bool
}

// enforcers are what the DaemonSets and pods of solutions that enforce begin
// with. Cilium, Antrea and their like also bring kinds of their own.
func enforcers() []string {
	return []string{
		"calico-node", "canal", "cilium", "antrea-agent", "kube-router", "weave-net", "kube-network-policies", "ovnkube-node", "ovn-kubernetes",
		"romana", "kube-ovn-cni", "azure-npm", "anetd", "kindnet", "sdn-", "nsx-node-agent", "netpol",
	}
}

// notEnforced looks for a solution that is known not to enforce, where none
// that does is seen.
func notEnforced(v *view) {
	if len(v.policies) == 0 {
		return
	}
	var idle *solution
	for _, s := range v.solutions() {
		if s.enforces {
			return
		}
		if idle == nil {
			idle = &s
		}
	}
	if idle == nil {
		return
	}
	v.in(idle.kind, idle.ns, idle.where)("", fmt.Sprintf("the network is %s, which accepts policies and enforces none; no other program that does is seen: %s without effect",
		idle.name, countText(v.policies)), "run a solution that enforces, or one beside it, such as kube-network-policies, kube-router or Calico")
}

func countText(p []*policy) string {
	if len(p) == 1 {
		return "1 policy is"
	}
	return fmt.Sprintf("%d policies are", len(p))
}

// solutions lists what the objects show, DaemonSets first, then pods and nodes.
func (v *view) solutions() []solution {
	var out []solution
	for _, d := range v.DaemonSets {
		out = append(out, known("DaemonSet", d.Namespace, d.Name, &d.Spec.Template.Spec)...)
	}
	for _, p := range v.Pods {
		if p.Spec.HostNetwork {
			out = append(out, known("Pod", p.Namespace, p.Name, &p.Spec)...)
		}
	}
	for _, n := range v.Nodes {
		if strings.Contains(n.Annotations["k3s.io/node-args"], "--disable-network-policy") {
			continue
		}
		if n.Labels["node.kubernetes.io/instance-type"] == "k3s" || n.Annotations["k3s.io/node-args"] != "" {
			out = append(out, solution{"k3s", "Node", "", n.Name, true}) // its own policy controller
		}
	}
	for _, n := range v.Nodes {
		if n.Annotations["flannel.alpha.coreos.com/backend-type"] != "" {
			out = append(out, solution{"flannel", "Node", "", n.Name, false})
		}
	}
	return out
}

func known(kind, ns, name string, spec *corev1.PodSpec) []solution {
	is := func(text string) bool {
		return slices.ContainsFunc(enforcers(), func(e string) bool { return strings.HasPrefix(text, e) })
	}
	if is(name) || slices.ContainsFunc(spec.Containers, func(c corev1.Container) bool { return is(c.Name) }) {
		return []solution{{"", kind, ns, name, true}}
	}
	switch {
	case strings.HasPrefix(name, "kube-flannel"):
		return []solution{{"flannel", kind, ns, name, false}}
	case strings.HasPrefix(name, "aws-node"):
		return []solution{{"the Amazon VPC plugin without its policy agent", kind, ns, name, awsEnforces(spec)}}
	}
	return nil
}

// awsEnforces reads the switch of the agent in the plugin's pod.
func awsEnforces(spec *corev1.PodSpec) bool {
	for _, c := range spec.Containers {
		if c.Name == "aws-eks-nodeagent" && slices.Contains(c.Args, "--enable-network-policy=true") {
			return true
		}
	}
	return false
}
