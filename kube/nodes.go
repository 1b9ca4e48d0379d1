package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// nodeRecord is what the index keeps of a node.
type nodeRecord struct {
	holder
	known    bool // the API told of it, and not only a pod that runs there
	endpoint *flow.Endpoint
	own      []netip.Addr // from its status
	addrs    []netip.Addr // that it claims: its own, and those of its hostNetwork pods
	cidrs    []netip.Prefix
	// host are the hostNetwork pods there and their addresses: what comes from
	// the node may come from any of them.
	host map[*podRecord][]netip.Addr
}

func (x *Index) node(name string) *nodeRecord {
	n := x.nodes[name]
	if n == nil {
		n = &nodeRecord{holder: holder{kind: "Node", key: podKey{name: intern(name)}}, host: make(map[*podRecord][]netip.Addr)}
		n.endpoint = &flow.Endpoint{Kind: flow.EndpointNode, Node: n.key.name}
		x.nodes[n.key.name] = n
	}
	return n
}

// setNode takes in what a node is now.
func (x *Index) setNode(o *corev1.Node, m moment) {
	n := x.node(o.Name)
	if !n.known {
		n.known = true
		x.hosts.Add(1)
	}
	var problems []string
	n.own = nil
	for _, a := range o.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			problems = append(problems, fmt.Sprintf("Node %s: address %q is none", o.Name, a.Address))
			continue
		}
		n.own = append(n.own, addr.Unmap())
	}
	x.problems.set(n.String(), problems)
	x.setPodCIDRs(n, o)
	x.claimNode(n, m)
}

func (x *Index) setPodCIDRs(n *nodeRecord, o *corev1.Node) {
	var now []netip.Prefix
	for _, text := range append([]string{o.Spec.PodCIDR}, o.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(text); err == nil && !slices.Contains(now, p.Masked()) {
			now = append(now, p.Masked())
		}
	}
	if slices.Equal(n.cidrs, now) {
		return
	}
	for _, p := range n.cidrs {
		x.networks.addCIDR(p, -1)
	}
	for _, p := range now {
		x.networks.addCIDR(p, 1)
	}
	n.cidrs = now
}

// deleteNode takes in that the API has no such node any more.
func (x *Index) deleteNode(name string, m moment) {
	n := x.nodes[name]
	if n == nil || !n.known {
		return
	}
	n.known, n.own = false, nil
	x.hosts.Add(-1)
	x.problems.set(n.String(), nil)
	x.setPodCIDRs(n, &corev1.Node{})
	x.claimNode(n, m)
}

// joinNode takes in that a pod shares its node's network.
func (x *Index) joinNode(r *podRecord, addrs []netip.Addr, m moment) {
	n := x.node(r.pod.Node)
	if r.node != nil && r.node != n {
		x.leaveNode(r, m)
	}
	before, there := n.host[r]
	if there && slices.Equal(before, addrs) {
		return
	}
	r.node, n.host[r] = n, addrs
	x.claimNode(n, m)
}

func (x *Index) leaveNode(r *podRecord, m moment) {
	if n := r.node; n != nil {
		delete(n.host, r)
		r.node = nil
		x.claimNode(n, m)
	}
}

// claimNode brings the node's claims and its candidates up to date.
func (x *Index) claimNode(n *nodeRecord, m moment) {
	now := slices.Clone(n.own)
	var pods []string
	for r, addrs := range n.host {
		pods = append(pods, r.String())
		for _, a := range addrs {
			if !slices.Contains(now, a) {
				now = append(now, a)
			}
		}
	}
	slices.Sort(pods)
	revised := !slices.Equal(n.endpoint.Candidates, pods)
	if revised {
		n.endpoint = &flow.Endpoint{Kind: flow.EndpointNode, Node: n.key.name, Candidates: pods}
	}
	x.reclaim(&n.holder, n.addrs, now, version{m.now, n.endpoint, nil}, revised, m)
	n.addrs = now
	if !n.known && len(n.host) == 0 {
		delete(x.nodes, n.key.name)
	}
}

// reclaim makes a holder's claims those to the addresses that it has now, for
// holders whose addresses change hands in an instant.
func (x *Index) reclaim(by *holder, before, now []netip.Addr, v version, revised bool, m moment) {
	for _, a := range before {
		c := openClaim(x.addresses.claims(a), by)
		switch {
		case c == nil:
		case !slices.Contains(now, a):
			next := *c
			next.doubt, next.to, next.gone = max(c.sure, m.now), m.now, m.now
			x.endClaim(a, next)
		case revised:
			x.revise(a, by, v)
		}
	}
	from := m.now
	if m.first {
		from = always
	}
	for _, a := range now {
		if !slices.Contains(before, a) {
			v.since = from
			x.beginClaim(a, claim{by: by, from: from, sure: from, doubt: forever, to: forever, gone: forever, versions: []version{v}})
		}
	}
}
