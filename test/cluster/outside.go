package cluster

import (
	"errors"
	"net/netip"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// Outside is a network namespace that is no part of the cluster. It and the
// nodes reach each other, and pods reach it with their own addresses.
type Outside struct {
	*netlab.Namespace
	IPv4, IPv6 netip.Addr
}

const (
	outside         = "203.0.113.7"
	outsideNetwork  = "203.0.113.0/24"
	outside6        = "2001:db8::7"
	outsideNetwork6 = "2001:db8::/64"
)

// Outside makes what is outside of the cluster; the caller closes it.
func (c *Cluster) Outside() (*Outside, error) {
	ns, err := netlab.New("outside")
	if err != nil {
		return nil, err
	}
	o := &Outside{ns, netip.MustParseAddr(outside), netip.MustParseAddr(outside6)}
	err = errors.Join(
		netlab.Link(c.plane.ns, "port-outside", nil, ns, "eth0", []string{outside + "/24", outside6 + "/64"}),
		c.plane.ns.IP("link", "set", "port-outside", "master", "br0"),
		ns.Batch("route add "+nodeNetwork+" dev eth0", "route add "+nodeNetwork6+" dev eth0"))
	for _, n := range c.all() {
		cidrs := n.podCIDRs()
		err = errors.Join(err,
			n.Batch("route replace "+outsideNetwork+" dev eth0", "route replace "+outsideNetwork6+" dev eth0"),
			ns.Batch("route add "+cidrs[0]+" via "+n.IPv4.String(), "route add "+cidrs[1]+" via "+n.IPv6.String()))
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return o, nil
}
