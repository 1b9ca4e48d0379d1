package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// outsideName stands for the addresses outside of the cluster.
const outsideName = "outside"

// workload is pods that somebody rolls out together, or everything outside.
type workload struct {
	name      string // namespace/name, with the kind between where two share it
	namespace string
	// ends are its pods, one of all that policies cannot tell apart.
	ends []end
	bare bool // it is one pod and no more
}

// workloads lists the cluster's workloads by name, the outside first.
func (j *judged) workloads() []workload {
	type key struct{ namespace, kind, name string }
	members := make(map[key]map[string]end)
	shared := make(map[string]int)
	blocks := j.blocks()
	for _, p := range j.policies.Pods() {
		w := j.Workload(j.pods[p.Namespace+"/"+p.Name])
		k := key{p.Namespace, w.Kind, w.Name}
		if members[k] == nil {
			members[k] = make(map[string]end)
			shared[p.Namespace+"/"+w.Name]++
		}
		if alike := blocks.alike(p); members[k][alike].pod == nil {
			members[k][alike] = end{pod: p}
		}
	}
	out := []workload{{name: outsideName, ends: []end{{addr: policy.End{Kind: flow.EndpointOutside}}}}}
	for k, ends := range members {
		w := workload{name: k.namespace + "/" + k.name, namespace: k.namespace, bare: k.kind == "Pod"}
		if shared[w.name] > 1 {
			w.name = k.namespace + "/" + strings.ToLower(k.kind) + "/" + k.name
		}
		for _, alike := range slices.Sorted(maps.Keys(ends)) {
			w.ends = append(w.ends, ends[alike])
		}
		out = append(out, w)
	}
	slices.SortFunc(out[1:], func(a, b workload) int { return cmp.Compare(a.name, b.name) })
	return out
}

// prefixes are what the policies' ipBlocks are made of.
type prefixes []netip.Prefix

func (j *judged) blocks() prefixes {
	seen := make(map[netip.Prefix]bool)
	add := func(peers []networkingv1.NetworkPolicyPeer) {
		for _, peer := range peers {
			if peer.IPBlock == nil {
				continue
			}
			for _, text := range append([]string{peer.IPBlock.CIDR}, peer.IPBlock.Except...) {
				if p, err := netip.ParsePrefix(text); err == nil {
					seen[p.Masked()] = true
				}
			}
		}
	}
	for _, p := range j.Policies {
		for _, r := range p.Spec.Ingress {
			add(r.From)
		}
		for _, r := range p.Spec.Egress {
			add(r.To)
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Prefix.Compare)
}

// alike is the same for pods that policies cannot tell apart.
func (b prefixes) alike(p *policy.RegisteredPod) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%p %t", p.Class, p.HostNetwork)
	for _, a := range p.Addrs {
		for i, prefix := range b {
			if prefix.Contains(a) {
				fmt.Fprintf(&text, " %d", i)
			}
		}
		text.WriteByte(';')
	}
	return text.String()
}

// outcome is a verdict over several pods.
type outcome uint8

const (
	outcomeUnknown outcome = iota
	outcomeDeny
	outcomeAllow
	outcomeSome // of some pods, or some addresses outside
)

var outcomeNames = [...]string{"unknown", "deny", "allow", "some"}

func (o outcome) String() string { return outcomeNames[o] }

// and joins what holds of some pods with what holds of others.
func (o outcome) and(other outcome) outcome {
	switch {
	case o == other:
		return o
	case o == outcomeUnknown || other == outcomeUnknown:
		return outcomeUnknown
	}
	return outcomeSome
}

// ports is a range of ports with one outcome.
type ports struct {
	protocol    flow.Protocol
	first, last uint16
	outcome     outcome
}

// reach says which ports of one workload another may connect to: ranges of
// TCP, UDP and SCTP, in order, that leave out no port.
func (j *judged) reach(from, to *workload) []ports {
	var out []ports
	for i := range from.ends {
		for k := range to.ends {
			c := meeting(from, to, i, k)
			one := rangesOf(j.policies.Reach(&c.Src, &c.Dst), from.name == outsideName || to.name == outsideName)
			if out == nil {
				out = one
			} else {
				out = sweep(out, one, func(p ports, a, b outcome) ports { p.outcome = a.and(b); return p })
			}
		}
	}
	return merged(out)
}

// meeting is a connection between pods of two workloads. Of one workload they
// are two pods: that a pod reaches itself says nothing.
func meeting(from, to *workload, i, k int) policy.Connection {
	c := connection(from.ends[i], to.ends[k], flow.TCP, 0)
	if from.name == to.name {
		c.Src.Pod += " of the same workload"
	}
	return c
}

// rangesOf takes over ranges. Of an address outside that is not said the
// verdict is unknown where an ipBlock decides: it holds of some.
func rangesOf(given []policy.PortRange, outside bool) []ports {
	out := make([]ports, len(given))
	for i, r := range given {
		out[i] = ports{protocol: r.Protocol, first: r.First, last: r.Last}
		switch {
		case r.Verdict == flow.VerdictAllowed:
			out[i].outcome = outcomeAllow
		case r.Verdict == flow.VerdictDenied:
			out[i].outcome = outcomeDeny
		case outside:
			out[i].outcome = outcomeSome
		}
	}
	return out
}

// sweep goes through two lists of ranges that both leave out no port, and
// gives each part of common borders to f.
func sweep[T any](a, b []ports, f func(p ports, a, b outcome) T) []T {
	var out []T
	for i, k := 0, 0; i < len(a) && k < len(b); {
		p := ports{protocol: a[i].protocol, first: max(a[i].first, b[k].first), last: min(a[i].last, b[k].last)}
		out = append(out, f(p, a[i].outcome, b[k].outcome))
		endA, endB := a[i].last == p.last, b[k].last == p.last
		if endA {
			i++
		}
		if endB {
			k++
		}
	}
	return out
}

// merged joins neighbours of one outcome.
func merged(in []ports) []ports {
	var out []ports
	for _, p := range in {
		if n := len(out); n > 0 && out[n-1].protocol == p.protocol && out[n-1].outcome == p.outcome && out[n-1].last+1 == p.first {
			out[n-1].last = p.last
			continue
		}
		out = append(out, p)
	}
	return out
}

// portsText writes ranges for people: "tcp 80, 443-444, udp".
func portsText(list []ports) string {
	var texts []string
	whole := 0
	var last flow.Protocol
	for _, p := range list {
		text := fmt.Sprint(p.first)
		if p.first != p.last {
			text += fmt.Sprintf("-%d", p.last)
		}
		switch {
		case p.first == 1 && p.last == 65535:
			text = p.protocol.String()
			whole++
		case len(texts) == 0 || p.protocol != last:
			text = p.protocol.String() + " " + text
		}
		last = p.protocol
		texts = append(texts, text)
	}
	if whole == 3 {
		return "every port"
	}
	return strings.Join(texts, ", ")
}

// among reports whether a workload is one of those that a flag names: by
// namespace, or by namespace/name. Without names every one is.
func among(w *workload, names []string) bool {
	return len(names) == 0 || slices.Contains(names, w.name) || w.namespace != "" && slices.Contains(names, w.namespace)
}

// checkNames refuses a name that fits no workload.
func checkNames(flag string, names []string, all []workload) error {
	for _, n := range names {
		if !slices.ContainsFunc(all, func(w workload) bool { return among(&w, []string{n}) }) {
			return usageError{fmt.Errorf("--%s %q: no workload or namespace has this name", flag, n)}
		}
	}
	return nil
}
