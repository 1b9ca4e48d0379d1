package lint_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/policy/lint"
)

func found1(t *testing.T, code, text string) []lint.Finding {
	t.Helper()
	o, problems := objects(t, text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []lint.Finding
	for _, f := range lint.Check(o) {
		if f.Code == code {
			got = append(got, f)
		}
	}
	return got
}

func TestDefaultDeny(t *testing.T) {
	const both = "podSelector: {}, policyTypes: [Ingress, Egress]"
	for _, c := range []struct{ name, policies, ingress, egress string }{
		{"no policy", "", "ops, shop (3 of 3 are)", "ops, shop (3 of 3 are)"},
		{"of both directions", np("p", both), "ops", "ops"},
		{"of ingress", np("p", "podSelector: {}"), "ops", "ops, shop (3 of 3 are)"},
		{"every pod is isolated, and some of it allowed", np("p", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"), "ops", "ops, shop (3 of 3 are)"},
		{"everything is allowed", np("p", "podSelector: {}, ingress: [{}]"), "ops, shop (0 of 3 are)", "ops, shop (3 of 3 are)"},
		{"one workload", np("p", "podSelector: {matchLabels: {app: web}}"), "ops, shop (1 of 3 are)", "ops, shop (3 of 3 are)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for code, want := range map[string]string{"FA801": c.ingress, "FA802": c.egress} {
				var got []string
				for _, f := range found1(t, code, scene+c.policies) {
					name := f.Name
					if name == "shop" {
						name += f.Message[strings.Index(f.Message, " ("):]
					}
					got = append(got, name)
				}
				if strings.Join(got, ", ") != want {
					t.Errorf("%s: %v, want %s", code, got, want)
				}
			}
		})
	}
}

func TestEnforcement(t *testing.T) {
	daemon := func(name, container string, args ...string) string {
		return fmt.Sprintf(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: %s, namespace: kube-system}, spec: {selector: {matchLabels: {app: %[1]s}}, template: {metadata: {labels: {app: %[1]s}}, spec: {hostNetwork: true, containers: [{name: %s, args: ["%s"]}]}}}}
---
`, name, container, strings.Join(args, `", "`))
	}
	const (
		flannelNode = "{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {flannel.alpha.coreos.com/backend-type: vxlan}}}\n---\n"
		k3sNode     = `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {flannel.alpha.coreos.com/backend-type: vxlan, k3s.io/node-args: '["server"]'}}}` + "\n---\n"
		k3sOff      = `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {flannel.alpha.coreos.com/backend-type: vxlan, k3s.io/node-args: '["server","--disable-network-policy"]'}}}` + "\n---\n"
		flannelPod  = "{apiVersion: v1, kind: Pod, metadata: {name: kube-flannel-ds-x7k2p, namespace: kube-flannel}, spec: {hostNetwork: true}}\n---\n"
	)
	deny := np("p", "podSelector: {}")
	for _, c := range []struct{ name, objects, want string }{
		{"flannel's DaemonSet", daemon("kube-flannel-ds", "kube-flannel") + deny, "DaemonSet kube-flannel-ds: flannel"},
		{"flannel's pods", flannelPod + deny, "Pod kube-flannel-ds-x7k2p: flannel"},
		{"flannel's nodes", flannelNode + deny, "Node n1: flannel"},
		{"without policies nobody is deceived", flannelNode, ""},
		{"flannel beside Calico", daemon("kube-flannel-ds", "kube-flannel") + daemon("calico-node", "calico-node") + deny, ""},
		{"flannel with a policy container", daemon("kube-flannel-ds", "kube-network-policies") + deny, ""},
		{"k3s has a controller of its own", k3sNode + deny, ""},
		{"k3s without it", k3sOff + deny, "Node n1: flannel"},
		{"the Amazon plugin, switched on", daemon("aws-node", "aws-eks-nodeagent", "--enable-network-policy=true") + deny, ""},
		{"the Amazon plugin, as it comes", daemon("aws-node", "aws-eks-nodeagent", "--enable-network-policy=false") + deny, "DaemonSet aws-node: the Amazon VPC plugin"},
		{"an unknown solution", daemon("mynet", "mynet") + deny, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			for _, f := range found1(t, "FA901", c.objects) {
				got += f.Kind + " " + f.Name + ": " + f.Message
			}
			want := c.want
			if want != "" {
				want = strings.Replace(want, ": ", ": the network is ", 1)
			}
			if !strings.HasPrefix(got, want) || (want == "") != (got == "") {
				t.Errorf("found %q, want %q", got, want)
			}
		})
	}
}

func TestSeverityIsReadBack(t *testing.T) {
	for s := lint.Info; s <= lint.Error; s++ {
		if got, err := lint.ParseSeverity(s.String()); got != s || err != nil {
			t.Errorf("%s is %v, %v", s, got, err)
		}
	}
	if _, err := lint.ParseSeverity("fatal"); err == nil {
		t.Error("fatal is a severity")
	}
}

// FuzzCheck: no objects make it panic, and each finding is of a rule and says
// what and what to do.
func FuzzCheck(f *testing.F) {
	f.Add(scene + np("p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {}], ports: [{port: http, endPort: 3}]}]"))
	f.Add(np("p", "podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}, ingress: [{from: [{namespaceSelector: {}}, {podSelector: {matchLabels: {a: b}}}]}]") + np("q", "podSelector: {}, ingress: [{ports: [{endPort: 7}]}]"))
	titles := make(map[string]bool)
	for _, r := range lint.Rules() {
		titles[r.Code] = true
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, _ := objects(t, text)
		for _, f := range lint.Check(o) {
			if !titles[f.Code] || f.Message == "" || f.Fix == "" || f.Name == "" {
				t.Errorf("%+v", f)
			}
		}
	})
}
