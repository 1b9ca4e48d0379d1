package lint

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// block is an ipBlock that can be read.
type block struct {
	cidr   netip.Prefix
	except []netip.Prefix
}

func readBlock(b *networkingv1.IPBlock) (block, bool) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return block{}, false
	}
	out := block{cidr: cidr}
	for _, text := range b.Except {
		e, err := netip.ParsePrefix(text)
		if err != nil {
			return block{}, false
		}
		out.except = append(out.except, e)
	}
	return out, true
}

func (b block) contains(a netip.Addr) bool {
	return b.cidr.Contains(a) && !slices.ContainsFunc(b.except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// overlaps reports whether a range has addresses of the block. Several excepts
// that only together hold the range are not put together.
func (b block) overlaps(r netip.Prefix) bool {
	if !b.cidr.Overlaps(r) {
		return false
	}
	common := r
	if b.cidr.Bits() > r.Bits() {
		common = b.cidr
	}
	return !slices.ContainsFunc(b.except, func(e netip.Prefix) bool { return e.Bits() <= common.Bits() && e.Contains(common.Addr()) })
}

func blocksOverPods(v *view, p *policy, found report) {
	p.blocks(func(path string, r *policyRule, given *networkingv1.IPBlock) {
		b, ok := readBlock(given)
		if !ok {
			return
		}
		const fix = "select pods by labels; let the block leave out the pods' addresses by except, if only outside is meant"
		what := "connect"
		if r.side == egress {
			what = "be reached"
		}
		if pods := v.podsIn(b); len(pods) > 0 {
			found(path+".cidr", fmt.Sprintf("%s covers %s: they may %s, whatever their labels", given.CIDR, podsText(pods), what), fix)
			return
		}
		for _, n := range v.Nodes {
			for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
				if r, err := netip.ParsePrefix(text); err == nil && b.overlaps(r) {
					found(path+".cidr", fmt.Sprintf("%s covers pod addresses: %s of node %s", given.CIDR, r, n.Name), fix)
					return
				}
			}
		}
	})
}

func (v *view) podsIn(b block) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range v.Pods {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && slices.ContainsFunc(addresses(p), b.contains) {
			out = append(out, p)
		}
	}
	return out
}

// blocksOverServices finds blocks that were likely written for a Service: its
// address is replaced by a pod's before policies look. Who writes all
// addresses means the world, not the Services in it.
func blocksOverServices(v *view, p *policy, found report) {
	p.blocks(func(path string, _ *policyRule, given *networkingv1.IPBlock) {
		b, ok := readBlock(given)
		if !ok || b.cidr.Bits() == 0 {
			return
		}
		for _, s := range v.Services {
			for _, text := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
				if a, err := netip.ParseAddr(text); err == nil && b.contains(a) {
					found(path+".cidr", fmt.Sprintf("%s covers %s of Service %s/%s: policies see the pod's address behind it, or either, as the network solution has it",
						given.CIDR, a, s.Namespace, s.Name), "select the Service's pods by their labels"+selectorText(s))
					return
				}
			}
		}
	})
}

func selectorText(s *corev1.Service) string {
	if len(s.Spec.Selector) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s)", labelsText(s.Spec.Selector))
}
