package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Node is a namespace that routes between pods, as a Kubernetes node does.
type Node struct {
	*Namespace
	Pods []*Pod

	made int // pods so far, which numbers their interfaces
}

// Pod is a namespace behind a node, with one address of each IP version.
type Pod struct {
	*Namespace
	IPv4, IPv6 netip.Addr
	Veth       string // the node's end
}

// NewNode makes a node that forwards, counts and forgets connections quickly.
func NewNode(label string) (*Node, error) {
	ns, err := New(label)
	if err != nil {
		return nil, err
	}
	n := &Node{Namespace: ns}
	for _, s := range [][2]string{
		{"ipv4/ip_forward", "1"},
		{"ipv6/conf/all/forwarding", "1"},
		{"netfilter/nf_conntrack_acct", "1"},
		{"netfilter/nf_conntrack_tcp_timeout_time_wait", "1"},
		{"netfilter/nf_conntrack_tcp_timeout_close", "1"},
		// Refusals by ICMP must not look like drops.
		{"ipv4/icmp_ratelimit", "0"},
		{"ipv6/icmp/ratelimit", "0"},
	} {
		if err := n.Sysctl(s[0], s[1]); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// gateways are the node's addresses towards its pods; every pod has both as
// its default route, so that pods need not share a network.
const (
	gateway4 = "169.254.1.1"
	gateway6 = "fe80::1"
)

// AddPod makes a pod namespace and routes its addresses to it.
func (n *Node) AddPod(label string, v4, v6 netip.Addr) (*Pod, error) {
	ns, err := New(label)
	if err != nil {
		return nil, err
	}
	p := &Pod{Namespace: ns, IPv4: v4, IPv6: v6, Veth: fmt.Sprintf("veth%d", n.made)}
	n.made++
	n.Pods = append(n.Pods, p)
	if err := Link(n.Namespace, p.Veth, []string{gateway4 + "/32", gateway6 + "/64"}, p.Namespace, "eth0", []string{v4.String() + "/32", v6.String() + "/128"}); err != nil {
		return nil, err
	}
	if err := n.Batch("route add "+v4.String()+"/32 dev "+p.Veth, "route add "+v6.String()+"/128 dev "+p.Veth); err != nil {
		return nil, err
	}
	return p, p.Batch("route add "+gateway4+" dev eth0 scope link",
		"route add default via "+gateway4+" dev eth0", "route add default via "+gateway6+" dev eth0")
}

// RemovePod removes a pod with its interfaces and routes.
func (n *Node) RemovePod(p *Pod) error {
	n.Pods = slices.DeleteFunc(n.Pods, func(x *Pod) bool { return x == p })
	// A namespace's end removes its interfaces some time later, and their
	// routes would be in the way of the addresses' next holder.
	return errors.Join(n.IP("link", "delete", p.Veth), p.Close())
}

// Join links two nodes and routes each one's pods to the other. Call it after
// all pods were added.
func Join(a, b *Node) error {
	const aAddr, bAddr, aAddr6, bAddr6 = "172.31.0.1", "172.31.0.2", "fd31::1", "fd31::2"
	err := Link(a.Namespace, "uplink", []string{aAddr + "/30", aAddr6 + "/64"}, b.Namespace, "uplink", []string{bAddr + "/30", bAddr6 + "/64"})
	if err != nil {
		return err
	}
	for _, r := range []struct {
		from      *Node
		to        *Node
		via, via6 string
	}{{a, b, bAddr, bAddr6}, {b, a, aAddr, aAddr6}} {
		for _, p := range r.to.Pods {
			if err := r.from.IP("route", "add", p.IPv4.String(), "via", r.via); err != nil {
				return err
			}
			if err := r.from.IP("route", "add", p.IPv6.String(), "via", r.via6); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close removes the node and its pods.
func (n *Node) Close() error {
	var errs []error
	for _, p := range n.Pods {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, n.Namespace.Close())...)
}
