package nflog

import (
	"slices"
	"testing"

	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/flow"
)

// logged is what a decoder makes of a packet that was logged with a prefix.
func logged(t *testing.T, d *decoder, prefix string, at int64) flow.Observation {
	t.Helper()
	o := flow.Observation{Time: at}
	if _, _, err := d.decode(record(attr(nfulaPrefix, []byte(prefix+"\x00")), attr(nfulaPayload, unhex(synV4))), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestMeanings(t *testing.T) {
	const denied, allowed, unknown = flow.VerdictDenied, flow.VerdictAllowed, flow.VerdictUnknown
	for _, c := range []struct {
		meaning Meaning
		prefix  string
		want    flow.Verdict
	}{
		{MeaningDenied, "", denied},
		{MeaningDenied, "anything", denied},
		{MeaningDenied, "DROP by policy a/b", unknown},
		{MeaningAllowed, "", allowed},
		{MeaningKubeRouter, "", denied},
		{MeaningKubeRouter, "DROP by policy monitoring/allow-prometheus-to-system-namespaces", unknown},
		{MeaningKubeRouter, "DROP by policy broken", unknown},
		{MeaningKubeRouter, "somebody else's DROP", unknown},
		{MeaningKubeRouter, "DPI|default", unknown},
		{MeaningCalico, "DPI|default", denied},
		{MeaningCalico, "DRI", denied},
		{MeaningCalico, "API0|np/namespace1/default.policy", allowed},
		{MeaningCalico, "PRE999|short.profile.name", unknown},
		{MeaningCalico, "", unknown},
		{MeaningCalico, "somebody else's DROP", unknown},
	} {
		if got := logged(t, newDecoder(Group{Meaning: c.meaning}), c.prefix, 1); got.Verdict != c.want {
			t.Errorf("%s, prefix %q: %s, want %s", Group{Meaning: c.meaning}, c.prefix, got.Verdict, c.want)
		}
	}
}

func TestPoliciesOfPrefixes(t *testing.T) {
	knp := func(namespace, name string) flow.PolicyRef {
		return flow.PolicyRef{Kind: calico.KindKubernetes, Namespace: namespace, Name: name}
	}
	longNamespace, longName := "team-payments-production-eu-1", "default-deny-ingress-and-egress"
	cluster := []flow.PolicyRef{
		knp(longNamespace, longName), knp("very-long-namespace-name-for-team-payments", "deny-all"),
		knp("aaaaaaaaaaaaaaaaaaaaaaaaXX", "bbbbbbbbbbbbbbbbbbbbbbbYY"), knp("aaaaaaaaaaaaaaaaaaaaaaaaXX", "bbbbbbbbbbbbbbbbbbbbbbbZZ"),
		{Kind: calico.KindGlobal, Name: "this-is-still-quite-a-long-tier-name-even-though-its-not-required.quite-a-long-policy-name"},
	}
	for _, c := range []struct {
		prefix string
		want   []flow.PolicyRef
	}{
		{"DROP by policy orkano-build-spike/default-deny-all", []flow.PolicyRef{knp("orkano-build-spike", "default-deny-all")}},
		{"DROP by policy kube-system/allow-dns.v2", []flow.PolicyRef{knp("kube-system", "allow-dns.v2")}},
		{"DROP by policy very-long-namespace-name-for-team-payme/deny-all", cluster[1:2]},
		{"DROP by policy team-payments-productio/default-deny-ingress-an", cluster[:1]},
		// Two policies fit: the name stays as it was logged.
		{"DROP by policy aaaaaaaaaaaaaaaaaaaaaaaa/bbbbbbbbbbbbbbbbbbbbbbb", []flow.PolicyRef{knp("aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbb")}},
		{"DROP by policy broken", nil},
		{"DPE1|gnp/t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name", []flow.PolicyRef{{Kind: calico.KindGlobal, Name: cluster[4].Name, Rule: "egress[1]", Side: "egress"}}},
		{"DPI|default", []flow.PolicyRef{{Kind: calico.KindTier, Name: "default", Side: "ingress"}}},
		{"PPI|default", nil},
		{"DRE", nil},
	} {
		d := newDecoder(Group{Meaning: MeaningPrefix})
		d.policies = func() []flow.PolicyRef { return cluster }
		var got []flow.PolicyRef
		if told := logged(t, d, c.prefix, 1).Told; told != nil {
			got = told.Policies
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %v\nwant %v", c.prefix, got, c.want)
		}
	}
}

func TestAPolicyThatIsKnownLaterIsFound(t *testing.T) {
	var cluster []flow.PolicyRef
	asked := 0
	d := newDecoder(Group{Meaning: MeaningCalico})
	d.policies = func() []flow.PolicyRef { asked++; return cluster }
	name := "this-is-still-quite-a-long-tier-name-even-though-its-not-required.quite-a-long-policy-name"
	const prefix = "DPE1|gnp/t_FSGxA9eGa6t_A5Rj2agPvl4aq8-eohq0An6xEW4n7_olicy-name"
	found := func(at int64) bool { return logged(t, d, prefix, at).Told.Policies[0].Name == name }
	if found(1) || found(2) || asked != 1 {
		t.Errorf("asked %d times for what is not known, want once", asked)
	}
	cluster = []flow.PolicyRef{{Kind: calico.KindGlobal, Name: name}}
	if found(againAfter) {
		t.Error("looked again too soon")
	}
	if !found(1+againAfter) || !found(2+againAfter) || asked != 2 {
		t.Errorf("not found, or asked again (%d times)", asked)
	}
}
