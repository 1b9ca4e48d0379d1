package lint

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// unknownPortNames finds names that no destination has: of ingress the
// policy's own pods, of egress the peers.
func unknownPortNames(v *view, p *policy, found report) {
	if v.podCount == 0 {
		return
	}
	p.eachPort(func(path string, r *policyRule, port *networkingv1.NetworkPolicyPort) {
		if port.Port == nil || port.Port.Type != intstr.String || len(validation.IsValidPortName(port.Port.StrVal)) > 0 {
			return
		}
		pods := p.selected
		if r.side == egress {
			pods = v.destinations(p, r)
		}
		name := port.Port.StrVal
		if r.side == egress && len(r.peers) > 0 && !slices.ContainsFunc(r.peers, func(q peer) bool { return q.IPBlock == nil }) {
			found(path+".port", fmt.Sprintf("port name %q never matches an ipBlock: only pods have names of ports", name), "write the port's number")
			return
		}
		if len(pods) == 0 {
			return // which another rule says
		}
		why, fix := portShortfall(pods, name, protocolOf(port))
		if why != "" {
			found(path+".port", why, fix)
		}
	})
}

// destinations lists the pods that an egress rule may reach.
func (v *view) destinations(p *policy, r *policyRule) []*corev1.Pod {
	var out []*corev1.Pod
	if len(r.peers) == 0 {
		for _, pods := range v.pods {
			out = append(out, pods...)
		}
	}
	for i := range r.peers {
		if q := &r.peers[i]; q.valid && q.IPBlock == nil {
			out = append(out, v.podsOf(p, q)...)
		}
	}
	return out
}

// portShortfall says why no pod has the port; nothing if one has.
func portShortfall(pods []*corev1.Pod, name string, protocol corev1.Protocol) (why, fix string) {
	var others []string
	for _, p := range pods {
		for _, c := range containers(p) {
			for _, cp := range c.Ports {
				is := cp.Protocol
				if is == "" {
					is = corev1.ProtocolTCP
				}
				switch {
				case cp.Name == name && is == protocol:
					return "", ""
				case cp.Name == name:
					return fmt.Sprintf("port %q of pod %s/%s is %s, the rule says %s", name, p.Namespace, p.Name, is, protocol),
						"write protocol: " + string(is)
				case cp.Name != "" && is == protocol && !slices.Contains(others, cp.Name):
					others = append(others, cp.Name)
				}
			}
		}
	}
	why = fmt.Sprintf("no container of %s has a %s port named %q", podsText(pods), protocol, name)
	if len(others) == 0 {
		return why, "write the port's number, or name the port in the container's ports"
	}
	slices.SortFunc(others, func(a, b string) int { return distance(a, name) - distance(b, name) })
	return fmt.Sprintf("%s; the closest is %q", why, others[0]), "write port: " + others[0] + ", or the port's number"
}

// containers are a pod's, with the init containers that go on as sidecars.
func containers(p *corev1.Pod) []corev1.Container {
	out := p.Spec.Containers
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(slices.Clip(out), c)
		}
	}
	return out
}

// podsText names some of many pods.
func podsText(pods []*corev1.Pod) string {
	text := "pod " + pods[0].Namespace + "/" + pods[0].Name
	if len(pods) > 1 {
		text += fmt.Sprintf(" and %d more", len(pods)-1)
	}
	return text
}
