package lint_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy/lint"
)

// objects reads manifests; what cannot be read is the second result.
func objects(t *testing.T, text string) (*lint.Objects, []kube.Problem) {
	t.Helper()
	s, err := kube.Load([]string{"-"}, kube.LoadOptions{Stdin: strings.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	return &lint.Objects{
		Namespaces: s.Namespaces, Nodes: s.Nodes, Pods: s.Pods, Services: s.Services, DaemonSets: s.DaemonSets, Policies: s.Policies,
	}, s.Problems
}

func codes(found []lint.Finding) []string {
	var out []string
	for _, f := range found {
		out = append(out, f.Code)
	}
	return out
}

var yamlBlock = regexp.MustCompile("(?s)(Before|After):\n\n```yaml\n(.*?)```")

// Every rule's page shows an example that the rule finds, and the same put right.
func TestPages(t *testing.T) {
	const dir = "../../docs/lint/"
	index, err := os.ReadFile(dir + "README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(dir + "FA*.md")
	if err != nil || len(pages) != len(lint.Rules()) {
		t.Errorf("%d pages for %d rules (%v)", len(pages), len(lint.Rules()), err)
	}
	for _, r := range lint.Rules() {
		t.Run(r.Code, func(t *testing.T) {
			page, err := os.ReadFile(dir + r.Code + ".md")
			if err != nil {
				t.Fatal(err)
			}
			if head := fmt.Sprintf("# %s: %s\n\nSeverity: %s\n\n", r.Code, r.Title, r.Severity); !strings.HasPrefix(string(page), head) {
				t.Errorf("the page begins otherwise than %q", head)
			}
			if row := fmt.Sprintf("\n| [%s](%s.md) | %s | %s |\n", r.Code, r.Code, r.Severity, r.Title); !strings.Contains(string(index), row) {
				t.Errorf("the index lacks %q", row)
			}
			examples := yamlBlock.FindAllStringSubmatch(string(page), -1)
			if len(examples) != 2 || examples[0][1] != "Before" || examples[1][1] != "After" {
				t.Fatalf("the page has %d examples, want one before and one after", len(examples))
			}
			for i, e := range examples {
				o, problems := objects(t, e[2])
				if r.Code == lint.Unreadable {
					if (len(problems) > 0) != (i == 0) {
						t.Errorf("%s: problems %v", e[1], problems)
					}
					continue
				}
				found := lint.Check(o)
				if len(problems) > 0 || slices.Contains(codes(found), r.Code) != (i == 0) {
					t.Errorf("%s: found %+v, problems %v", e[1], found, problems)
				}
				for _, f := range found {
					if i == 1 && f.Severity > lint.Info {
						t.Errorf("After: found %+v", f)
					}
				}
			}
		})
	}
}

// scene are the objects that the tables below stand in.
const scene = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: ops}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web, tier: front}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, tier: front}}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}, spec: {initContainers: [{name: proxy, restartPolicy: Always, ports: [{name: admin, containerPort: 9000}]}], containers: [{name: c, ports: [{name: sql, containerPort: 3306}]}]}, status: {podIP: 10.244.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done-0, namespace: shop, labels: {app: done}}, status: {phase: Succeeded, podIP: 10.99.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host-0, namespace: ops, labels: {app: host}}, spec: {hostNetwork: true}, status: {podIP: 192.168.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: prom-0, namespace: ops, labels: {app: prom, app.kubernetes.io/name: prometheus}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: dns-0, namespace: kube-system, labels: {k8s-app: kube-dns}}, spec: {containers: [{name: c, ports: [{name: dns, containerPort: 1053, protocol: UDP}, {name: dns-tcp, containerPort: 1053, protocol: TCP}]}]}, status: {podIP: 10.244.0.9}}
---
{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, selector: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}}
---
`

// np is a policy of namespace shop.
func np(name, spec string) string {
	return fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s, namespace: shop}, spec: {%s}}\n---\n", name, spec)
}

// found is what a case must say: field and a part of the message or the fix.
type found struct{ field, text string }

func TestRules(t *testing.T) {
	const (
		db      = "podSelector: {matchLabels: {app: db}}, "
		dnsRule = "{to: [{namespaceSelector: {}}], ports: [{port: 1053, protocol: UDP}, {port: 1053}]}"
	)
	ingress := func(from string) string { return np("p", db+"ingress: [{from: ["+from+"]}]") }
	egress := func(to string) string {
		return np("p", db+"policyTypes: [Egress], egress: ["+dnsRule+", {to: ["+to+"]}]")
	}
	ports := func(list string) string { return np("p", db+"ingress: [{ports: ["+list+"]}]") }
	for code, cases := range map[string][]struct {
		name, objects string
		want          []found
	}{
		"FA001": {
			{"an unknown operator", np("p", "podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}"), []found{{"spec.podSelector.matchExpressions[0].operator", "Is"}}},
			{"In without values", np("p", "podSelector: {matchExpressions: [{key: a, operator: In}]}"), []found{{"spec.podSelector.matchExpressions[0].values", "must be specified"}}},
			{"Exists with values", ingress("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"), []found{{"spec.ingress[0].from[0].podSelector.matchExpressions[0].values", ""}}},
			{"a value that no label can have", ingress(`{namespaceSelector: {matchLabels: {a: "x y"}}}`), []found{{"spec.ingress[0].from[0].namespaceSelector.matchLabels", "x y"}}},
			{"all four operators", np("p", "podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [c]}, {key: a, operator: Exists}, {key: b, operator: DoesNotExist}]}"), nil},
		},
		"FA002": {
			{"an address", ingress("{ipBlock: {cidr: 192.0.2.1}}"), []found{{"spec.ingress[0].from[0].ipBlock.cidr", "192.0.2.1/32"}}},
			{"an except", egress(`{ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8::/129"]}}`), []found{{"spec.egress[1].to[0].ipBlock.except[0]", "/129"}}},
			{"IPv6", ingress(`{ipBlock: {cidr: "2001:db8::/32"}}`), nil},
		},
		"FA003": {
			{"0", ports("{port: 0}"), []found{{"spec.ingress[0].ports[0].port", "0"}}},
			{"65536", ports("{port: 65536}"), []found{{"spec.ingress[0].ports[0].port", "65536"}}},
			{"a number in quotes", ports(`{port: "8080"}`), []found{{"spec.ingress[0].ports[0].port", "8080 without quotes"}}},
			{"a name too long", ports("{port: this-is-too-long}"), []found{{"spec.ingress[0].ports[0].port", "15 characters"}}},
			{"endPort beside a name", ports("{port: http, endPort: 90}"), []found{{"spec.ingress[0].ports[0].endPort", "as a number"}}},
			{"endPort alone", ports("{endPort: 90}"), []found{{"spec.ingress[0].ports[0].endPort", "as a number"}}},
			{"endPort too large", ports("{port: 80, endPort: 70000}"), []found{{"spec.ingress[0].ports[0].endPort", "70000"}}},
			{"the largest, a name, a protocol", ports("{port: 65535}, {port: http}, {protocol: UDP}"), nil},
		},
		"FA004": {
			{"ICMP", ports("{protocol: ICMP}"), []found{{"spec.ingress[0].ports[0].protocol", "ICMP"}}},
			{"SCTP", ports("{protocol: SCTP, port: 1}"), nil},
		},
		"FA005": {
			{"below", ports("{port: 80, endPort: 79}"), []found{{"spec.ingress[0].ports[0].endPort", "79"}}},
			{"equal", ports("{port: 80, endPort: 80}"), nil},
		},
		"FA006": {
			{"outside", ingress("{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.101.0/28]}}"), []found{{"spec.ingress[0].from[0].ipBlock.except[0]", ""}}},
			{"larger", ingress("{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.0.0/16]}}"), []found{{"spec.ingress[0].from[0].ipBlock.except[0]", ""}}},
			{"the whole", ingress("{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.0/24]}}"), []found{{"spec.ingress[0].from[0].ipBlock.except[0]", ""}}},
			{"one address", ingress("{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.255/32]}}"), nil},
		},
		"FA007": {
			{"both", ingress("{ipBlock: {cidr: 198.51.100.0/24}, namespaceSelector: {}}"), []found{{"spec.ingress[0].from[0]", "ipBlock"}}},
			{"nothing", ingress("{}"), []found{{"spec.ingress[0].from[0]", "nothing"}}},
			{"an empty selector", ingress("{podSelector: {}}"), nil},
		},
		"FA008": {
			{"in lower case", np("p", "podSelector: {}, policyTypes: [Ingress, egress]"), []found{{"spec.policyTypes[1]", "egress"}}},
			{"both", np("p", "podSelector: {}, policyTypes: [Ingress, Egress]"), nil},
		},
		"FA101": {
			{"rules", np("p", "podSelector: {}, policyTypes: [Ingress], egress: [{}]"), []found{{"spec.egress", ""}}},
			{"an empty list", np("p", "podSelector: {}, policyTypes: [Ingress], egress: []"), []found{{"spec.egress", ""}}},
			{"without policyTypes", np("p", "podSelector: {}, egress: [{}]"), nil},
			{"an empty list without policyTypes", np("p", "podSelector: {}, egress: []"), nil},
		},
		"FA102": {
			{"rules", np("p", "podSelector: {}, policyTypes: [Egress], ingress: [{}]"), []found{{"spec.ingress", ""}}},
			{"without policyTypes", np("p", "podSelector: {}, ingress: [{}]"), nil},
		},
		"FA103": {
			{"ingress rules, and Egress", np("p", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}]"), []found{{"spec.policyTypes", ""}}},
			{"a default deny", np("p", "podSelector: {}, policyTypes: [Ingress, Egress]"), nil},
			{"an empty list says so", np("p", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: []"), nil},
		},
		"FA104": {
			{"implied", np("p", "podSelector: {}, egress: [{}]"), []found{{"spec", "omitted"}}},
			{"listed", np("p", "podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]"), []found{{"spec.policyTypes", ""}}},
			{"an empty list says so", np("p", "podSelector: {}, ingress: [], egress: [{}]"), nil},
			{"Egress alone", np("p", "podSelector: {}, policyTypes: [Egress], egress: [{}]"), nil},
		},
		"FA201": {
			{"the podSelector matches elsewhere only", ingress("{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {matchLabels: {app: prom}}}"), []found{{"spec.ingress[0].from[1]", "no pod of namespace shop"}}},
			{"in the other order, and of egress", egress("{podSelector: {matchLabels: {app: prom}}}, {namespaceSelector: {matchLabels: {team: ops}}}"), []found{{"spec.egress[1].to[1]", "no pod of namespace shop"}}},
			{"its own namespace is let in whole", ingress("{namespaceSelector: {matchLabels: {team: shop}}}, {podSelector: {matchLabels: {app: web}}}"), []found{{"spec.ingress[0].from[1]", "namespace shop is among them"}}},
			{"every namespace", ingress("{namespaceSelector: {}}, {podSelector: {matchLabels: {app: web}}}"), []found{{"spec.ingress[0].from[1]", "namespace shop is among them"}}},
			{"both add something", ingress("{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {matchLabels: {app: web}}}"), nil},
			{"every pod of the own namespace", ingress("{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {}}"), nil},
			{"one item", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: prom}}}"), nil},
			{"two rules", np("p", db+"ingress: [{from: [{namespaceSelector: {}}]}, {from: [{podSelector: {matchLabels: {app: prom}}}]}]"), nil},
		},
		"FA202": {
			{"each matches alone", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}"), []found{{"spec.ingress[0].from[0]", "web-0 of namespace shop"}}},
			{"together they match", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: prom}}}"), nil},
			{"the podSelector matches nowhere", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: none}}}"), nil},
			{"two items", ingress("{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {matchLabels: {app: web}}}"), nil},
		},
		"FA301": {
			{"one letter", np("p", "podSelector: {matchLabels: {app: wep, tier: front}}"), []found{{"spec.podSelector", "the closest are pod shop/web-0 and 1 more, which has app=web, not app=wep (1 letter off)"}}},
			{"and the fix", np("p", "podSelector: {matchLabels: {app: wep, tier: front}}"), []found{{"spec.podSelector", "write app: web"}}},
			{"another value", np("p", "podSelector: {matchLabels: {app: web, tier: backend}}"), []found{{"spec.podSelector", "has tier=front, not tier=backend"}}},
			{"a missing label", np("p", "podSelector: {matchLabels: {app: db, tier: data}}"), []found{{"spec.podSelector", "closest is pod shop/db-0, which lacks tier=data"}}},
			{"a pod that has ended", np("p", "podSelector: {matchLabels: {app: done}}"), []found{{"spec.podSelector", ""}}},
			{"an expression", np("p", "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web, db]}]}"), []found{{"spec.podSelector", "has app=db, not app not in (web,db)"}}},
			{"every pod", np("p", "podSelector: {}"), nil},
			{"one pod", np("p", db), nil},
		},
		"FA302": {
			{"the own namespace", ingress("{podSelector: {matchLabels: {app: prom}}}"), []found{{"spec.ingress[0].from[0].podSelector", "no pod of namespace shop"}}},
			{"the key is another", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: prometheus}}}"), []found{{"spec.ingress[0].from[0].podSelector", "has app=prom, not app=prometheus"}}},
			{"the label is there under another key", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {name: prometheus}}}"), []found{{"spec.ingress[0].from[0].podSelector", "write app.kubernetes.io/name: prometheus"}}},
			{"pods in another namespace", ingress("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: prom}}}"), nil},
			{"no such namespace is another rule's", ingress("{namespaceSelector: {matchLabels: {team: none}}, podSelector: {matchLabels: {app: prom}}}"), nil},
		},
		"FA303": {
			{"a name for a label", ingress("{namespaceSelector: {matchLabels: {name: ops}}}"), []found{{"spec.ingress[0].from[0].namespaceSelector", "kubernetes.io/metadata.name: ops"}}},
			{"a value", ingress("{namespaceSelector: {matchLabels: {team: opps}}}"), []found{{"spec.ingress[0].from[0].namespaceSelector", "namespace ops, which has team=ops, not team=opps (1 letter off)"}}},
			{"the label of every namespace", ingress("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}"), nil},
		},
		"FA304": {
			{"a hash", np("p", "podSelector: {matchLabels: {app: db, pod-template-hash: abc}}"), []found{{"spec.podSelector.matchLabels[pod-template-hash]", ""}}},
			{"in a peer's expression", ingress("{podSelector: {matchExpressions: [{key: controller-revision-hash, operator: In, values: [a]}]}}"), []found{{"spec.ingress[0].from[0].podSelector.matchExpressions[0]", ""}}},
			{"a StatefulSet's pod", np("p", "podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}}"), nil},
			{"that there is a hash", np("p", "podSelector: {matchExpressions: [{key: pod-template-hash, operator: Exists}]}"), nil},
		},
		"FA401": {
			{"of the policy's pods", ports("{port: mysql}"), []found{{"spec.ingress[0].ports[0].port", `the closest is "sql"`}}},
			{"another protocol", ports("{port: sql, protocol: UDP}"), []found{{"spec.ingress[0].ports[0].port", "is TCP, the rule says UDP"}}},
			{"of the peers", np("p", db+"policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]"), []found{{"spec.egress[0].ports[0].port", "web-0"}}},
			{"of addresses", np("p", db+"policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: https}]}]"), []found{{"spec.egress[0].ports[0].port", "never matches an ipBlock"}}},
			{"one of the peers has it", np("p", db+"policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]"), nil},
			{"a sidecar has it", ports("{port: admin}"), nil},
			{"the policy selects nobody", np("p", "podSelector: {matchLabels: {app: none}}, ingress: [{ports: [{port: mysql}]}]"), nil},
		},
		"FA501": {
			{"a pod", ingress("{ipBlock: {cidr: 10.244.1.4/32}}"), []found{{"spec.ingress[0].from[0].ipBlock.cidr", "pod shop/db-0"}}},
			{"a node's range", ingress(`{ipBlock: {cidr: "fd00:1::/32"}}`), []found{{"spec.ingress[0].from[0].ipBlock.cidr", "fd00:1::/64 of node n1"}}},
			{"everybody", ingress("{ipBlock: {cidr: 0.0.0.0/0}}"), []found{{"spec.ingress[0].from[0].ipBlock.cidr", "and 3 more"}}},
			{"all but pods", ingress("{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/16]}}"), nil},
			{"a node", ingress("{ipBlock: {cidr: 192.168.0.1/32}}"), nil},
			{"a pod that has ended", ingress("{ipBlock: {cidr: 10.99.0.0/16}}"), nil},
		},
		"FA502": {
			{"a Service", egress("{ipBlock: {cidr: 10.96.0.10/32}}"), []found{{"spec.egress[1].to[0].ipBlock.cidr", "Service kube-system/kube-dns"}}},
			{"the Services' range", egress("{ipBlock: {cidr: 10.96.0.0/12}}"), []found{{"spec.egress[1].to[0].ipBlock.cidr", "k8s-app=kube-dns"}}},
			{"the world", egress("{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/16]}}"), nil},
			{"another address", egress("{ipBlock: {cidr: 10.96.0.11/32}}"), nil},
		},
		"FA601": {
			{"rules for others only", np("p", db+"policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]"), []found{{"spec.egress", "pod shop/db-0"}}},
			{"the Service's port, which the pods do not have", np("p", db+"policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]"), []found{{"spec.egress", "UDP or TCP"}}},
			{"TCP alone", np("p", db+"policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: dns-tcp}]}]"), []found{{"spec.egress", "over UDP:"}}},
			{"the pods' port", np("p", db+"policyTypes: [Egress], egress: ["+dnsRule+"]"), nil},
			{"the port's name", np("p", db+"policyTypes: [Egress], egress: [{ports: [{port: dns, protocol: UDP}, {port: dns-tcp}]}]"), nil},
			{"another policy allows it", np("p", db+"policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]") + np("q", "podSelector: {}, policyTypes: [Egress], egress: ["+dnsRule+"]"), nil},
			{"nothing is allowed at all", np("p", "podSelector: {}, policyTypes: [Egress]"), nil},
			{"the cache on the node", np("p", db+"policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 169.254.20.10/32}}]}]"), nil},
			{"ingress", np("p", db+"ingress: [{from: [{podSelector: {}}]}]"), nil},
		},
		"FA602": {
			{"UDP alone", np("p", db+"policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: 1053, protocol: UDP}]}]"), []found{{"spec.egress", "UDP alone"}}},
			{"both", np("p", db+"policyTypes: [Egress], egress: ["+dnsRule+"]"), nil},
			{"neither is another rule's", np("p", db+"policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]"), nil},
		},
		"FA701": {
			{"a wider policy", np("narrow", db+"ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 3306}]}]") + np("wide", "podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 3000, endPort: 4000}]}]"), []found{{"", "policy wide"}}},
			{"blocks", np("narrow", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/25, except: [192.0.2.0/28]}}]}]") + np("wide", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/29]}}]}]"), []found{{"", "policy wide"}}},
			{"a hole in the wider block", np("narrow", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/25}}]}]") + np("wide", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/29]}}]}]"), nil},
			{"expressions", np("narrow", "podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}, ingress: []") + np("wide", "podSelector: {matchExpressions: [{key: app, operator: In, values: [web, db]}, {key: app, operator: NotIn, values: [x]}, {key: app, operator: Exists}]}, ingress: []"), []found{{"", "policy wide"}}},
			{"a default deny allows nothing", np("allow", db+"ingress: [{}]") + np("deny", "podSelector: {}, ingress: []"), nil},
			{"another direction", np("p", db+"policyTypes: [Ingress]") + np("q", db+"policyTypes: [Egress]"), nil},
			{"another port", np("p", db+"ingress: [{ports: [{port: 1}]}]") + np("q", "podSelector: {}, ingress: [{ports: [{port: 2}]}]"), nil},
			{"all ports and one", np("p", db+"ingress: [{}]") + np("q", "podSelector: {}, ingress: [{ports: [{port: 2}]}]"), nil},
			{"another protocol", np("p", db+"ingress: [{ports: [{port: 1}]}]") + np("q", "podSelector: {}, ingress: [{ports: [{port: 1, protocol: UDP}]}]"), nil},
			{"other namespaces' pods", np("p", db+"ingress: [{from: [{namespaceSelector: {}}]}]") + np("q", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"), nil},
		},
		"FA702": {
			{"word for word", np("a", db+"ingress: [{}]") + np("b", db+"ingress: [{}]"), []found{{"", "policy a"}}},
			{"in other words", np("a", db+"ingress: []") + np("b", "podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}, policyTypes: [Ingress]"), []found{{"", "policy a"}}},
			{"one is wider", np("a", db+"ingress: [{}]") + np("b", "podSelector: {}, ingress: [{}]"), nil},
			{"another namespace", np("a", db+"ingress: [{}]") + strings.Replace(np("b", db+"ingress: [{}]"), "namespace: shop", "namespace: ops", 1), nil},
		},
	} {
		for _, c := range cases {
			t.Run(code+"/"+c.name, func(t *testing.T) {
				o, problems := objects(t, scene+c.objects)
				if len(problems) > 0 {
					t.Fatal(problems)
				}
				var got []lint.Finding
				for _, f := range lint.Check(o) {
					if f.Code == code {
						got = append(got, f)
					}
				}
				if len(got) != len(c.want) {
					t.Fatalf("found %+v, want %v", got, c.want)
				}
				for i, w := range c.want {
					if got[i].Field != w.field || !strings.Contains(got[i].Message+"\n"+got[i].Fix, w.text) || got[i].Kind != "NetworkPolicy" || got[i].Fix == "" {
						t.Errorf("found %+v, want %v", got[i], w)
					}
				}
			})
		}
	}
}
