package calico

import (
	"testing"

	"github.com/flowaudit/flowaudit/flow"
)

// Names from which Felix's own tests make hashed prefixes.
const (
	chars63     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0"
	longGlobal  = "this-is-still-quite-a-long-tier-name-even-though-its-not-required.quite-a-long-policy-name"
	longGlobal2 = longGlobal + "2"
)

func TestPrefixes(t *testing.T) {
	const allowed, denied, pass = flow.VerdictAllowed, flow.VerdictDenied, flow.VerdictUnknown
	const in, out = flow.DirectionIngress, flow.DirectionEgress
	for _, c := range []struct {
		prefix string
		want   Prefix
	}{
		{"API0|np/namespace1/default.policy", Prefix{allowed, in, flow.PolicyRef{Kind: KindNamespaced, Namespace: "namespace1", Name: "default.policy", Rule: "ingress[0]", Side: "ingress"}, false}},
		{"PRE999|short.profile.name", Prefix{pass, out, flow.PolicyRef{Kind: KindProfile, Name: "short.profile.name", Rule: "egress[999]", Side: "egress"}, false}},
		{"DPE1|gnp/t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name", Prefix{denied, out, flow.PolicyRef{Kind: KindGlobal, Name: "t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name", Rule: "egress[1]", Side: "egress"}, true}},
		{"DPE|tier-1", Prefix{denied, out, flow.PolicyRef{Kind: KindTier, Name: "tier-1", Side: "egress"}, false}},
		{"DPI|tier-0_phEfG4Vhbq2xh4TQsePNa2X9YRj5peCVw1FgaNSbd_4567890123", Prefix{denied, in, flow.PolicyRef{Kind: KindTier, Name: "tier-0_phEfG4Vhbq2xh4TQsePNa2X9YRj5peCVw1FgaNSbd_4567890123", Side: "ingress"}, true}},
		{"PPI|tier-1", Prefix{pass, in, flow.PolicyRef{Kind: KindTier, Name: "tier-1", Side: "ingress"}, false}},
		{"DRI", Prefix{denied, in, flow.PolicyRef{}, false}},
		{"DRE", Prefix{denied, out, flow.PolicyRef{}, false}},
		{"DPI0|kcnp/kcnp.kube-admin.policy-1.1.1.1", Prefix{denied, in, flow.PolicyRef{Kind: "ClusterNetworkPolicy", Name: "kcnp.kube-admin.policy-1.1.1.1", Rule: "ingress[0]", Side: "ingress"}, false}},
		{"DPI|default", Prefix{denied, in, flow.PolicyRef{Kind: KindTier, Name: "default", Side: "ingress"}, false}},
		{"APE2|calico-system/knp.default.whisker", Prefix{allowed, out, flow.PolicyRef{Kind: KindKubernetes, Namespace: "calico-system", Name: "whisker", Rule: "egress[2]", Side: "egress"}, false}},
		{"API1|knp/shop/db", Prefix{allowed, in, flow.PolicyRef{Kind: KindKubernetes, Namespace: "shop", Name: "db", Rule: "ingress[1]", Side: "ingress"}, false}},
		{"DPI3|np/policy", Prefix{denied, in, flow.PolicyRef{Kind: KindNamespaced, Namespace: "np", Name: "policy", Rule: "ingress[3]", Side: "ingress"}, false}},
		{"DPI3|global", Prefix{denied, in, flow.PolicyRef{Kind: KindGlobal, Name: "global", Rule: "ingress[3]", Side: "ingress"}, false}},
	} {
		got, ok := NewGrammar().Parse(c.prefix)
		if !ok || got != c.want {
			t.Errorf("%s:\n got %+v %t\nwant %+v", c.prefix, got, ok, c.want)
		}
	}
	for _, other := range []string{"", "DROP by policy a/b", "XPI0|a", "DP", "DPI0/a", "[UFW BLOCK] "} {
		if got, ok := NewGrammar().Parse(other); ok {
			t.Errorf("%q is taken for Felix's: %+v", other, got)
		}
	}
}

func TestShorten(t *testing.T) {
	for full, want := range map[string]string{
		"DPE1|gnp/" + longGlobal:  "DPE1|gnp/t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name",
		"DPE2|gnp/" + longGlobal2: "DPE2|gnp/t_G4MaamO0BQNQg8Ibyy-r9qg2HIK8-7EaPOVzsy5Nv_licy-name2",
		"DPI|tier-012345678901234567890123456789012345678901234567890123": "DPI|tier-0_phEfG4Vhbq2xh4TQsePNa2X9YRj5peCVw1FgaNSbd_4567890123",
		"DPI|tier-01234567890123456789012345678901234567890123456789012":  "DPI|tier-01234567890123456789012345678901234567890123456789012",
	} {
		if got := Shorten(full); got != want {
			t.Errorf("Shorten(%s) = %s, want %s", full, got, want)
		}
	}
}

func TestHashedNamesAreResolvedOverKnownPolicies(t *testing.T) {
	long := flow.PolicyRef{Kind: KindKubernetes, Namespace: "a-namespace-of-a-team", Name: "allow-ingress-from-the-gateway-to-the-back-end"}
	known := []flow.PolicyRef{
		{Kind: KindKubernetes, Namespace: "shop", Name: "db"}, {Kind: KindGlobal, Name: longGlobal}, {Kind: KindGlobal, Name: longGlobal2}, long,
	}
	for prefix, want := range map[string]flow.PolicyRef{
		"DPE1|gnp/t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name":                                known[1],
		"DPE2|gnp/t_G4MaamO0BQNQg8Ibyy-r9qg2HIK8-7EaPOVzsy5Nv_licy-name2":                                known[2],
		Shorten("API12|knp/a-namespace-of-a-team/allow-ingress-from-the-gateway-to-the-back-end"):        long,
		Shorten("API0|a-namespace-of-a-team/knp.default.allow-ingress-from-the-gateway-to-the-back-end"): long,
	} {
		if got, ok := Resolve(prefix, known); !ok || got != want {
			t.Errorf("Resolve(%s) = %v, %t; want %v", prefix, got, ok, want)
		}
	}
	for _, prefix := range []string{Shorten("API0|gnp/" + chars63), "DPI|default", ""} {
		if got, ok := Resolve(prefix, known); ok {
			t.Errorf("Resolve(%q) = %v, though it is not known", prefix, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"API0|np/namespace1/default.policy", "DPI|default", "DRE", "PPI|t", "APE2|a/knp.default.b"} {
		f.Add(s)
	}
	g := NewGrammar()
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := g.Parse(s)
		if ok && p.Side == flow.DirectionUnknown {
			t.Errorf("%q: no side", s)
		}
		if p.Hashed {
			Resolve(s, []flow.PolicyRef{p.Policy})
		}
	})
}
