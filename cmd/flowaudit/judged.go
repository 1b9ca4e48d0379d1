package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy"
	"github.com/flowaudit/flowaudit/policy/other"
)

// judged is a cluster with its policies compiled.
type judged struct {
	*kube.Snapshot
	policies *policy.Snapshot
	pods     map[string]*corev1.Pod // that run or will, by namespace/name
	ended    map[string]bool        // pods that do not run any more
	addrs    map[netip.Addr]policy.End
}

// rememberedDecisions are as many as a processor's cache holds: in a table of
// many different connections, looking farther costs more than deciding again.
const rememberedDecisions = 1 << 14

// judge compiles the policies of objects.
func judge(o *kube.Snapshot) (*judged, error) {
	j := &judged{
		Snapshot: o, pods: make(map[string]*corev1.Pod, len(o.Pods)), ended: make(map[string]bool), addrs: make(map[netip.Addr]policy.End),
	}
	options := policy.Options{Policies: o.Policies, Namespaces: make(map[string]map[string]string), CacheEntries: rememberedDecisions}
	for _, n := range o.Namespaces {
		if !slices.Contains(o.Assumed, n.Name) { // whose labels are not known
			options.Namespaces[n.Name] = n.Labels
		}
	}
	for _, p := range o.Pods {
		name := p.Namespace + "/" + p.Name
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			j.ended[name] = true
			continue
		}
		j.pods[name] = p
		options.Pods = append(options.Pods, podOf(p))
	}
	engine, err := policy.New(options)
	if err != nil {
		return nil, fmt.Errorf("compile policies: %w", err)
	}
	j.policies = engine.Snapshot()
	j.addAddresses()
	return j, nil
}

// podOf is what policies can tell of a pod.
func podOf(p *corev1.Pod) policy.Pod {
	out := policy.Pod{
		Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
		// Of a pod without containers, as some write for examples, no name can be known.
		PortsUnknown: len(p.Spec.Containers) == 0,
		Addrs:        addresses(p),
	}
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			protocol, err := flow.ParseProtocol(string(port.Protocol))
			if port.Protocol == "" {
				protocol, err = flow.TCP, nil
			}
			if err == nil && port.Name != "" && port.ContainerPort > 0 && port.ContainerPort <= 65535 {
				out.Ports = append(out.Ports, policy.NamedPort{Name: port.Name, Protocol: protocol, Port: uint16(port.ContainerPort)})
			}
		}
	}
	return out
}

func addresses(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	add(p.Status.PodIP)
	for _, ip := range p.Status.PodIPs {
		add(ip.IP)
	}
	return out
}

// addAddresses notes who has which address: pods before nodes before Services.
func (j *judged) addAddresses() {
	for _, s := range j.Services {
		texts := append(append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...), s.Spec.ExternalIPs...)
		for _, in := range s.Status.LoadBalancer.Ingress {
			texts = append(texts, in.IP)
		}
		for _, text := range texts {
			if a, err := netip.ParseAddr(text); err == nil {
				j.addrs[a.Unmap()] = policy.End{Kind: flow.EndpointService, Addr: a.Unmap()}
			}
		}
	}
	for _, n := range j.Nodes {
		for _, address := range n.Status.Addresses {
			if a, err := netip.ParseAddr(address.Address); err == nil {
				j.addrs[a.Unmap()] = policy.End{Kind: flow.EndpointNode, Node: n.Name, Addr: a.Unmap()}
			}
		}
	}
	for _, p := range j.policies.Pods() {
		for _, a := range p.Addrs {
			end := p.End()
			end.Addr = a
			if before, taken := j.addrs[a]; taken && before.Kind == flow.EndpointPod && end.Kind == flow.EndpointPod {
				end = policy.End{Kind: flow.EndpointAmbiguous, Addr: a}
			}
			j.addrs[a] = end
		}
	}
}

// end is one end of a connection as somebody named it: a pod, which may have
// several addresses, or what has an address.
type end struct {
	pod  *policy.RegisteredPod
	addr policy.End
}

// find resolves namespace/pod or an address.
func (j *judged) find(text string) (end, error) {
	if ns, name, ok := strings.Cut(text, "/"); ok {
		if p := j.policies.Pod(ns, name); p != nil {
			return end{pod: p}, nil
		}
		if j.ended[text] {
			return end{}, fmt.Errorf("pod %s has ended", text)
		}
		return end{}, fmt.Errorf("pod %s is not among the objects%s", text, j.similar(text))
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return end{}, fmt.Errorf("%q is neither namespace/pod nor an address", text)
	}
	a = a.Unmap().WithZone("")
	if e, known := j.addrs[a]; known {
		return end{addr: e}, nil
	}
	if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
		return end{addr: policy.End{Addr: a}}, nil // nobody's, and not outside either
	}
	return end{addr: policy.End{Kind: flow.EndpointOutside, Addr: a}}, nil
}

// similar names a pod that was likely meant.
func (j *judged) similar(text string) string {
	ns, name, _ := strings.Cut(text, "/")
	best := ""
	for full := range j.pods {
		podNS, pod, _ := strings.Cut(full, "/")
		if (pod == name || podNS == ns && (strings.HasPrefix(pod, name) || strings.HasPrefix(name, pod))) && (best == "" || full < best) {
			best = full
		}
	}
	if best == "" {
		return ""
	}
	return ": did you mean " + best + "?"
}

// connection puts two ends together. Two pods meet by a common IP version.
func connection(src, dst end, protocol flow.Protocol, port uint16) policy.Connection {
	if src.pod != nil && dst.pod != nil {
		return policy.Connect(src.pod, dst.pod, protocol, port)
	}
	return policy.Connection{Src: src.toward(dst), Dst: dst.toward(src), Protocol: protocol, Port: port}
}

// toward is the end with the address of the other's IP version.
func (e end) toward(other end) policy.End {
	if e.pod == nil {
		return e.addr
	}
	out := e.pod.End()
	for _, a := range e.pod.Addrs {
		if a.Is4() == other.addr.Addr.Is4() {
			out.Addr = a
			break
		}
	}
	return out
}

// parsePort reads a port; the empty text is a port that is not known.
func parsePort(text string) (uint16, error) {
	if text == "" {
		return 0, nil
	}
	n := 0
	for _, c := range []byte(text) {
		if c < '0' || c > '9' || n > 65535 {
			return 0, fmt.Errorf("port %q: want a number from 1 to 65535", text)
		}
		n = n*10 + int(c-'0')
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", text)
	}
	return uint16(n), nil
}

// verdictWord is the word of CSV and tables.
func verdictWord(v flow.Verdict) string {
	switch v {
	case flow.VerdictAllowed:
		return "allow"
	case flow.VerdictDenied:
		return "deny"
	}
	return "unknown"
}

// where says in which file and line a policy's rule is; "" if no file has it.
func (j *judged) where(r flow.PolicyRef) string {
	field := ""
	if r.Rule != "" {
		field = "spec." + r.Rule
	}
	file, line := j.Position("NetworkPolicy", r.Namespace, r.Name, field)
	if line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// tellProblems says which policies could not be compiled, each with its place.
func (j *judged) tellProblems(s *source) {
	for _, p := range j.policies.Problems() {
		at := ""
		if file, line := j.Position("NetworkPolicy", p.Namespace, p.Policy, p.Field); line > 0 {
			at = fmt.Sprintf("%s:%d: ", file, line)
		}
		fmt.Fprintf(s.env.stderr, "%s%s: what it decides is unknown\n", at, p)
	}
}

// otherwise names the policies of other kinds that select an end of a
// connection, or may.
func (j *judged) otherwise(ends ...end) (out []string) {
	if len(j.OtherPolicies) == 0 {
		return nil
	}
	var policies []*other.Policy
	for _, p := range j.OtherPolicies {
		policies = append(policies, other.Read(p.Group, p.Kind, p.Namespace, p.Name, p.Object))
	}
	set := other.NewSet(policies)
	add := func(p *other.Policy, what string) {
		text := p.String() + " selects " + what
		if p.Doubt != "" {
			text = p.String() + " may select " + what + ": " + p.Doubt
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	for _, e := range ends {
		at := e.addr
		if e.pod != nil {
			at = e.pod.End()
		}
		switch at.Kind {
		case flow.EndpointPod:
			labels, known := at.Class.NamespaceLabels()
			if !known {
				labels = nil
			}
			for _, p := range set.Selecting(&other.Pod{Namespace: at.Class.Namespace(), NamespaceLabels: labels, Labels: at.Class.Labels()}) {
				add(p, at.Class.Namespace()+"/"+at.Pod)
			}
		case flow.EndpointNode:
			for _, p := range set.SelectingNodes() {
				add(p, "nodes, perhaps "+at.Node)
			}
		}
	}
	return out
}
