package kube

import (
	"net/netip"
	"slices"
	"sync"
)

// networks knows which addresses are of the cluster's pods and Services though
// nobody is known to hold them: those of a node's podCIDRs, and the neighbours
// of known ones, since many network plugins take no notice of podCIDRs.
type networks struct {
	mu         sync.RWMutex
	cidrs      prefixes
	lengths    []int    // of cidrs, each once
	parts      prefixes // neighbourhoods that have smaller cidrs
	neighbours prefixes
	pods       prefixes // the neighbourhoods of pods
	around     prefixes // the surroundings of pods and nodes

	stale bool // what follows is
	obeys bool // every IPv4 address of a pod is of a podCIDR, and there is one
	obey6 bool // the same of IPv6
}

// prefixes counts why each is there.
type prefixes map[netip.Prefix]int

func (p prefixes) add(x netip.Prefix, d int) {
	if p[x] += d; p[x] <= 0 {
		delete(p, x)
	}
}

func newNetworks() *networks {
	return &networks{cidrs: make(prefixes), parts: make(prefixes), neighbours: make(prefixes), pods: make(prefixes), around: make(prefixes)}
}

// wide is the prefix of an address, longer or shorter by family.
func wide(a netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits6
	if a.Is4() {
		bits = bits4
	}
	p, _ := a.WithZone("").Prefix(bits) // bits fit both families
	return p
}

// Addresses of one /24 or /112 are neighbours. Those of one /16 or /64, which
// is what a cloud's subnet has, are around each other.
func neighbourhood(a netip.Addr) netip.Prefix { return wide(a, 24, 112) }
func surroundings(a netip.Addr) netip.Prefix  { return wide(a, 16, 64) }

// addService takes in an address of a Service, or lets go of it.
func (n *networks) addService(a netip.Addr, d int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.neighbours.add(neighbourhood(a), d)
}

// addPod takes in an address of a pod's own, or lets go of it.
func (n *networks) addPod(a netip.Addr, d int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := neighbourhood(a)
	before := n.pods[p]
	n.neighbours.add(p, d)
	n.pods.add(p, d)
	n.around.add(surroundings(a), d)
	n.stale = n.stale || (before > 0) != (n.pods[p] > 0)
}

// addNode takes in an address of a node, or lets go of it.
func (n *networks) addNode(a netip.Addr, d int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.around.add(surroundings(a), d)
}

func (n *networks) addCIDR(p netip.Prefix, d int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs.add(p.Masked(), d)
	if part := neighbourhood(p.Addr()); p.Bits() > part.Bits() {
		n.parts.add(part, d)
	}
	if !slices.Contains(n.lengths, p.Bits()) {
		n.lengths = append(n.lengths, p.Bits()) // one that falls out of use costs a look and no more
	}
	n.stale = true
}

func (n *networks) contain(a netip.Addr) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.neighbours[neighbourhood(a)] > 0 || n.inCIDR(a)
}

func (n *networks) inCIDR(a netip.Addr) bool {
	for _, bits := range n.lengths {
		if p, err := a.WithZone("").Prefix(bits); err == nil && n.cidrs[p] > 0 {
			return true
		}
	}
	return false
}

// mayContain reports whether an address could be of a pod that is not known
// yet. Where the pods that are known have addresses of podCIDRs, another will,
// too. Else podCIDRs say nothing: a pod's address is a private one, or one
// around those of pods and nodes.
func (n *networks) mayContain(a netip.Addr) bool {
	if n.contain(a) {
		return true
	}
	return !n.obeyed(a.Is4()) && (private(a) || n.isAround(a))
}

func (n *networks) isAround(a netip.Addr) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.around[surroundings(a)] > 0
}

// obeyed reports whether pods are where podCIDRs say.
func (n *networks) obeyed(v4 bool) bool {
	n.mu.RLock()
	stale, obeys, obey6 := n.stale, n.obeys, n.obey6
	n.mu.RUnlock()
	if stale {
		n.mu.Lock()
		n.obeys, n.obey6, n.stale = n.everyPodIn(true), n.everyPodIn(false), false
		obeys, obey6 = n.obeys, n.obey6
		n.mu.Unlock()
	}
	if v4 {
		return obeys
	}
	return obey6
}

func (n *networks) everyPodIn(v4 bool) bool {
	found := false
	for p := range n.pods {
		if p.Addr().Is4() != v4 {
			continue
		}
		if !n.inCIDR(p.Addr()) && n.parts[p] == 0 {
			return false
		}
		found = true
	}
	return found
}

// private reports addresses that networks inside of an organization use: also
// those for carriers (RFC 6598) and for benchmarks (RFC 2544), which clouds
// give to pods.
func private(a netip.Addr) bool {
	if !a.Is4() {
		return a.IsPrivate()
	}
	b := a.As4()
	return a.IsPrivate() || b[0] == 100 && b[1]&0xc0 == 64 || b[0] == 198 && b[1]&0xfe == 18
}
