package policy_test

import (
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

func TestProblemsNameTheField(t *testing.T) {
	for _, c := range []struct{ spec, field, message string }{
		{`{podSelector: {matchExpressions: [{key: app, operator: Equals, values: [a]}]}}`, "spec.podSelector.matchExpressions[0].operator", "not a valid selector operator"},
		{`{podSelector: {matchExpressions: [{key: app, operator: In}]}}`, "spec.podSelector.matchExpressions[0].values", "must be specified when `operator` is 'In' or 'NotIn'"},
		{`{podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}`, "spec.podSelector.matchExpressions[0].values", "may not be specified"},
		{`{podSelector: {matchLabels: {"not a key": a}}}`, "spec.podSelector.matchLabels", `"not a key"`},
		{`{podSelector: {matchLabels: {app: "no value!"}}}`, "spec.podSelector.matchLabels", `"no value!"`},
		{`{policyTypes: [ingress]}`, "spec.policyTypes[0]", "want Ingress or Egress"},
		{`{policyTypes: [Egress, Ingress, Egress]}`, "spec.policyTypes", "has 3 items"},
		{`{ingress: [{from: [{podSelector: {}}, {}]}]}`, "spec.ingress[0].from[1]", "is empty"},
		{`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}`, "spec.ingress[0].from[0]", "make them two items"},
		{`{ingress: [{ports: [{port: 1}]}, {from: [{namespaceSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}]}]}`, "spec.ingress[1].from[0].namespaceSelector.matchExpressions[0].operator", "in"},
		{`{ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0}}]}]}`, "spec.ingress[0].from[1].ipBlock.cidr", `"10.0.0" is no CIDR`},
		{`{ingress: [{from: [{ipBlock: {cidr: ""}}]}]}`, "spec.ingress[0].from[0].ipBlock.cidr", `"" is no CIDR`},
		{`{egress: [{to: [{ipBlock: {cidr: 10.0.0.1}}]}]}`, "spec.egress[0].to[0].ipBlock.cidr", "is no CIDR"},
		{`{egress: [{to: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}`, "spec.egress[0].to[0].ipBlock.cidr", "is no CIDR"}, // octal or decimal: readers differ
		{`{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, x]}}]}]}`, "spec.egress[0].to[0].ipBlock.except[1]", `"x" is no CIDR`},
		{`{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}`, "spec.egress[0].to[0].ipBlock.except[0]", "is not a part of 10.0.0.0/8"},
		{`{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}`, "spec.egress[0].to[0].ipBlock.except[0]", "is not a part of"},
		{`{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]}`, "spec.egress[0].to[0].ipBlock.except[0]", "is not a part of"},
		{`{egress: [{to: [{ipBlock: {cidr: "2001:db8::/32", except: [10.0.0.0/8]}}]}]}`, "spec.egress[0].to[0].ipBlock.except[0]", "is not a part of"},
		{`{ingress: [{ports: [{port: 80, protocol: tcp}]}]}`, "spec.ingress[0].ports[0].protocol", "want TCP, UDP or SCTP"},
		{`{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}`, "spec.ingress[0].ports[0].protocol", `"ICMP"`},
		{`{ingress: [{ports: [{port: 0}]}]}`, "spec.ingress[0].ports[0].port", "0 is no port"},
		{`{ingress: [{ports: [{port: 443}, {port: 65536}]}]}`, "spec.ingress[0].ports[1].port", "65536 is no port"},
		{`{ingress: [{ports: [{port: -1}]}]}`, "spec.ingress[0].ports[0].port", "-1 is no port"},
		{`{ingress: [{ports: [{port: Http_Port}]}]}`, "spec.ingress[0].ports[0].port", "is no port name"},
		{`{ingress: [{ports: [{port: "80"}]}]}`, "spec.ingress[0].ports[0].port", `"80" is no port name`},
		{`{ingress: [{ports: [{port: 80, endPort: 79}]}]}`, "spec.ingress[0].ports[0].endPort", "79 is below port 80"},
		{`{ingress: [{ports: [{port: 80, endPort: 65536}]}]}`, "spec.ingress[0].ports[0].endPort", "65536 is no port"},
		{`{ingress: [{ports: [{endPort: 80}]}]}`, "spec.ingress[0].ports[0].endPort", "without port"},
		{`{ingress: [{ports: [{port: http, endPort: 80}]}]}`, "spec.ingress[0].ports[0].endPort", "named port"},
	} {
		t.Run(c.spec, func(t *testing.T) {
			p := decode(t, "metadata: {namespace: shop, name: broken}\nspec: "+c.spec)[0]
			for coding, by := range codings {
				e := shop(t)
				problems := e.SetPolicy(by(p))
				if len(problems) == 0 || problems[0].Field != c.field || !strings.Contains(problems[0].Message, c.message) {
					t.Errorf("%s: %v, want field %s and %q", coding, problems, c.field, c.message)
				}
				if len(problems) > 0 && !strings.HasPrefix(problems[0].String(), "NetworkPolicy shop/broken: "+c.field+": ") {
					t.Errorf("the problem reads %s", problems[0])
				}
				if got := e.Snapshot().Problems(); len(got) != len(problems) {
					t.Errorf("the snapshot has %v", got)
				}
				// What it does is not known, whatever is wrong with it.
				s := e.Snapshot()
				if d := s.Decide(parseConnection(t, s, "data/db > shop/api tcp 12345")); d.Verdict != flow.VerdictUnknown || d.Ingress.Reason != policy.ReasonInvalid {
					t.Errorf("an invalid policy decides: %+v", d)
				}
				d := s.Decide(parseConnection(t, s, "data/db > data/api tcp 12345"))
				if d.Verdict != flow.VerdictAllowed {
					t.Errorf("it reaches into another namespace: %+v", d)
				}
				// Only when it is gone is anything known again.
				e.SetPolicy(decode(t, "metadata: {namespace: shop, name: deny}\nspec: {podSelector: {matchLabels: {app: none}}}")[0])
				e.DeletePolicy("shop", "broken")
				s = e.Snapshot()
				if d := s.Decide(parseConnection(t, s, "data/db > shop/api tcp 12345")); d.Verdict != flow.VerdictAllowed || len(s.Problems()) != 0 {
					t.Errorf("it still counts when it is deleted: %+v", d)
				}
			}
		})
	}
}

// What cannot be known ends in unknown, and only where it could change the answer.
func TestUnknown(t *testing.T) {
	for _, c := range []struct{ text, policies, connections string }{
		{"an invalid policy neither denies nor allows, unless it changes nothing", `
metadata: {name: broken}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}, {from: [{ipBlock: {cidr: x}}]}]}`, `
			data/db > shop/web tcp 80 allowed rule
			data/db > shop/web tcp 81 unknown invalid-policy
			data/db > shop/api tcp 81 allowed not-isolated
			shop/web > data/db tcp 81 allowed not-isolated`},
		{"beside a valid policy it can only allow more", `
metadata: {name: broken}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}], from: [{podSelector: {}}]}, {ports: [{port: 443}], from: [{}]}]}
---
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}`, `
			data/db > shop/web tcp 8080 allowed rule
			data/db > shop/web tcp 443 unknown invalid-policy
			data/db > shop/web tcp 80 denied no-rule
			shop/api > shop/web tcp 80 unknown invalid-policy
			data/db > shop/web tcp 81 denied no-rule`},
		{"whom an invalid podSelector selects is not known", `
metadata: {name: broken}
spec: {podSelector: {matchExpressions: [{key: app, operator: is, values: [web]}]}, policyTypes: [Egress]}`, `
			shop/web > data/db tcp 80 unknown invalid-policy
			shop/bare > data/db tcp 80 unknown invalid-policy
			shop/web > node:node-1 tcp 80 allowed own-node
			data/db > shop/web tcp 80 allowed not-isolated`},
		{"an invalid policyType is perhaps either", `
metadata: {name: broken}
spec: {podSelector: {}, policyTypes: [egress]}`, `
			shop/web > data/db tcp 80 unknown invalid-policy
			data/db > shop/web tcp 80 unknown invalid-policy`},
		{"an end of which nothing is known may be any pod", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 10.0.9.0/24}}], ports: [{port: 81}]}]}`, `
			unknown:10.0.8.1 > shop/web tcp 80 unknown end end
			unknown:10.0.8.1 > shop/web tcp 81 denied end no-rule
			unknown:10.0.9.1 > shop/web tcp 81 unknown end rule
			shop/web > unknown:10.0.9.1 tcp 81 unknown not-isolated end
			unknown:10.0.9.1 > shop/api tcp 80 unknown end not-isolated`},
		{"a Service's own address is no ipBlock's matter", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/12}}], ports: [{port: 80}]}]}`, `
			shop/web > service:10.96.0.1 tcp 80 unknown end end
			shop/web > service:10.96.0.1 tcp 81 denied no-rule end`},
		{"a port that is not known matches only rules without ports", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 80}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{protocol: UDP}, {port: http}]}]}`, `
			shop/api > shop/web tcp 0 allowed rule
			data/db > shop/web tcp 0 unknown port
			data/db > shop/web udp 0 denied no-rule
			data/db > shop/api udp 0 allowed rule
			data/db > shop/api tcp 0 unknown port`},
	} {
		t.Run(c.text, func(t *testing.T) {
			for coding, by := range codings {
				t.Run(coding, func(t *testing.T) {
					check(t, shop(t, recode(decode(t, c.policies), by)...), c.connections)
				})
			}
		})
	}
}

func TestUnknownEnds(t *testing.T) {
	policies := `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: data}}}], ports: [{port: 81}]},
  {from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 82}]}, {from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}], ports: [{port: 83}]}, {ports: [{port: http}]}]}`
	e := shop(t, decode(t, policies)...)
	s := e.Snapshot()
	web := s.Pod("shop", "web").End()
	stranger := e.Classes().End(&policy.Pod{Namespace: "data", Name: "x", Labels: map[string]string{"app": "db"}})
	nameless := web
	nameless.Pod, nameless.Addr = "", stranger.Addr
	portless := e.Classes().End(&policy.Pod{Namespace: "shop", Name: "y", NamespaceLabels: map[string]string{}, PortsUnknown: true})
	homeless := web
	homeless.Node = ""
	node := parseEnd(t, s, "node:node-2")
	classless := policy.End{Kind: flow.EndpointPod, Addr: parseEnd(t, s, "10.1.1.1").Addr}
	for _, c := range []struct {
		text     string
		src, dst policy.End
		port     uint16
		verdict  flow.Verdict
		reason   policy.Reason
	}{
		{"labels of the namespace", stranger, web, 80, flow.VerdictUnknown, policy.ReasonNamespace},
		{"but its name is known", stranger, web, 81, flow.VerdictAllowed, policy.ReasonRule},
		{"an address", stranger, web, 82, flow.VerdictUnknown, policy.ReasonAddress},
		{"an address, and every one would do", stranger, web, 83, flow.VerdictAllowed, policy.ReasonRule},
		{"the names of ports", web, portless, 8080, flow.VerdictUnknown, policy.ReasonPort},
		{"a pod's name and address", nameless, nameless, 99, flow.VerdictUnknown, policy.ReasonSame},
		{"a pod's node", node, homeless, 99, flow.VerdictUnknown, policy.ReasonSame},
		{"a pod's class", classless, web, 80, flow.VerdictUnknown, policy.ReasonEnd},
		{"a pod's class, and its address is enough", classless, web, 82, flow.VerdictUnknown, policy.ReasonRule},
		{"the API server is outside", policy.End{Kind: flow.EndpointAPIServer, Addr: parseEnd(t, s, "203.0.113.1").Addr}, web, 80, flow.VerdictDenied, policy.ReasonNoRule},
		{"a node and its pods are told apart", node, web, 99, flow.VerdictDenied, policy.ReasonNoRule},
	} {
		d := s.Decide(&policy.Connection{Src: c.src, Dst: c.dst, Protocol: flow.TCP, Port: c.port})
		if d.Verdict != c.verdict || d.Ingress.Reason != c.reason {
			t.Errorf("%s: %v (%v, %v), want %v (%v)", c.text, d.Verdict, d.Egress.Reason, d.Ingress.Reason, c.verdict, c.reason)
		}
	}
}

func TestZeroValuesAreUnknown(t *testing.T) {
	s := shop(t).Snapshot()
	if d := s.Decide(&policy.Connection{}); d.Verdict != flow.VerdictUnknown || d.Egress.Reason != policy.ReasonEnd || d.Ingress.Reason != policy.ReasonEnd {
		t.Errorf("a connection of which nothing is known is %+v", d)
	}
	if (policy.Decision{}).Verdict != flow.VerdictUnknown || (policy.Side{}).Verdict != flow.VerdictUnknown {
		t.Error("a zero decision is known")
	}
}

func TestIngressIsJudgedByTheSourceThatTheNodeSees(t *testing.T) {
	e := shop(t, decode(t, `
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`)...)
	s := e.Snapshot()
	c := parseConnection(t, s, "shop/web > shop/api tcp 80")
	if d := s.Decide(c); d.Verdict != flow.VerdictAllowed {
		t.Errorf("untranslated it is %v", d.Verdict)
	}
	c.Seen = parseEnd(t, s, "node:node-1")
	if d := s.Decide(c); d.Egress.Verdict != flow.VerdictAllowed || d.Ingress.Verdict != flow.VerdictDenied {
		t.Errorf("translated to another node's address: %+v", d)
	}
	c.Seen = parseEnd(t, s, "node:node-2")
	if d := s.Decide(c); d.Verdict != flow.VerdictAllowed || d.Ingress.Reason != policy.ReasonOwnNode {
		t.Errorf("translated to the own node's address: %+v", d)
	}
}
