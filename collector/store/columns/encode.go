// Package columns says how stores write flows into columns, and what a filter asks of these.
package columns

import (
	"encoding/json"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// LabelText puts labels into one text: each as newline key = value newline, so
// that a requirement is a search for text. Neither part may hold a newline.
func LabelText(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString("\n")
		b.WriteString(k)
		b.WriteString("=")
		b.WriteString(labels[k])
	}
	b.WriteString("\n")
	return b.String()
}

// LabelsOf reads what LabelText wrote.
func LabelsOf(text string) map[string]string {
	if text == "" {
		return nil
	}
	out := make(map[string]string)
	for _, l := range strings.Split(strings.Trim(text, "\n"), "\n") {
		k, v, _ := strings.Cut(l, "=")
		out[k] = v
	}
	return out
}

// AddrBytes is how addresses are stored: 16 bytes, IPv4 mapped, so that a
// prefix is a range. The zero Addr is empty.
func AddrBytes(a netip.Addr) []byte {
	if !a.IsValid() {
		return []byte{}
	}
	b := a.As16()
	return b[:]
}

// AddrOf reads what AddrBytes wrote.
func AddrOf(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}
	}
	return a.Unmap()
}

// PoliciesText is the rules that decided as JSON; empty for none.
func PoliciesText(refs []flow.PolicyRef) string {
	if len(refs) == 0 {
		return ""
	}
	b, _ := json.Marshal(refs) // strings only: it cannot fail
	return string(b)
}

// PoliciesOf reads what PoliciesText wrote; nil for what cannot be read.
func PoliciesOf(text string) []flow.PolicyRef {
	var refs []flow.PolicyRef
	if text == "" || json.Unmarshal([]byte(text), &refs) != nil {
		return nil
	}
	return refs
}

// PolicyNames is what questions read of the rules that decided: each as
// "namespace/name" or "namespace/name rule", joined by commas.
func PolicyNames(refs []flow.PolicyRef) string {
	var names []string
	for _, r := range refs {
		if name := RuleName(r.Namespace, r.Name, r.Rule); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// RuleName is a rule of a policy, or, without a rule, the policy.
func RuleName(namespace, policy, rule string) string {
	return strings.TrimSuffix(namespace+"/"+policy+" "+rule, " ")
}

// PrefixText is a network, or an address where that is all; empty for none.
func PrefixText(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return ""
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// PairID is what two nodes' reports of the same connections have in common, as
// a hash.
func PairID(f *flow.Flow) uint64 {
	p := f.Pair()
	src, dst := p.Src.As16(), p.Dst.As16()
	h := fnv.New64a()
	_, _ = h.Write([]byte(f.Cluster)) // a hash takes everything
	_, _ = h.Write([]byte{0, byte(p.Protocol), byte(p.Port >> 8), byte(p.Port)})
	_, _ = h.Write(src[:])
	_, _ = h.Write(dst[:])
	_, _ = h.Write([]byte(p.Apart))
	return h.Sum64()
}

// LimitsText is an agent's limits as JSON; empty for none.
func LimitsText(limits []string) string {
	if len(limits) == 0 {
		return ""
	}
	b, _ := json.Marshal(limits) // strings only: it cannot fail
	return string(b)
}

// LimitsOf reads what LimitsText wrote; nil for what cannot be read.
func LimitsOf(text string) []string {
	var limits []string
	if text == "" || json.Unmarshal([]byte(text), &limits) != nil {
		return nil
	}
	return limits
}
