package policy_test

import (
	"testing"
)

// Each table is one sentence of the API, from the documentation of the fields
// of networking.k8s.io/v1 or of the concept page; every policy comes as YAML
// and through protobuf.
func TestAPIDocumentation(t *testing.T) {
	for _, sentence := range sentences {
		t.Run(sentence.text, func(t *testing.T) {
			for coding, by := range codings {
				t.Run(coding, func(t *testing.T) {
					e := shop(t, recode(decode(t, sentence.policies), by)...)
					if problems := e.Snapshot().Problems(); len(problems) > 0 {
						t.Fatal(problems)
					}
					check(t, e, sentence.connections)
				})
			}
		})
	}
}

var sentences = []struct{ text, policies, connections string }{
	{"podSelector: an empty selector matches all pods in the policy's namespace", `
spec: {podSelector: {}}`, `
		data/db > shop/web tcp 80 denied not-isolated no-rule
		data/db > shop/bare tcp 80 denied no-rule
		shop/web > shop/api tcp 80 denied no-rule
		shop/web > data/db tcp 80 allowed not-isolated not-isolated`},
	{"podSelector: this field is optional, and defaults to an empty selector", `
spec: {ingress: []}`, `
		data/db > shop/bare tcp 80 denied no-rule
		ops/probe > data/db tcp 80 allowed not-isolated`},
	{"podSelector: selects the pods to which this object applies", `
spec: {podSelector: {matchLabels: {app: web, role: front}}}`, `
		data/db > shop/web-2 tcp 80 denied
		data/db > shop/api tcp 80 allowed
		shop/web > data/api tcp 80 allowed`},
	{"multiple policies can select the same pods; their rules are combined additively", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}]}
---
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 81}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		shop/api > shop/web tcp 81 allowed
		shop/api > shop/web tcp 82 denied
		shop/web > shop/api tcp 80 denied
		shop/api > shop/bare tcp 80 denied`},
	{"ingress: traffic is allowed if no policy selects the pod", `
spec: {podSelector: {matchLabels: {app: none}}}`, `
		203.0.113.7 > shop/web tcp 80 allowed not-a-pod not-isolated
		203.0.113.7 > shop/web icmp 0 allowed`},
	{"ingress: or if the traffic source is the pod's local node", `
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`, `
		node:node-1 > shop/web tcp 8080 allowed not-a-pod own-node
		node:node-2 > shop/web tcp 8080 denied no-rule
		node:node-1 > shop/web icmp 0 allowed own-node
		ops/exporter > shop/web tcp 8080 allowed own-node
		ops/exporter > shop/web-2 tcp 8080 denied`},
	{"the exception is traffic to and from the node where a pod runs", `
spec: {podSelector: {}, policyTypes: [Egress]}`, `
		shop/web > node:node-1 tcp 10250 allowed own-node not-a-pod
		shop/web > node:node-2 tcp 10250 denied
		shop/web > ops/exporter tcp 9100 allowed own-node`},
	{"ingress: if this field is empty the policy does not allow any traffic", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: []}
---
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress]}`, `
		shop/bare > shop/web tcp 80 denied
		shop/bare > shop/api tcp 80 denied
		shop/bare > shop/bare tcp 80 allowed
		shop/web > data/db tcp 80 allowed`},
	{"ingress: one rule that is empty allows everything", `
spec: {podSelector: {}, ingress: [{}]}
---
spec: {podSelector: {}}`, `
		203.0.113.7 > shop/web tcp 80 allowed rule
		203.0.113.7 > shop/web sctp 80 allowed rule
		data/db > shop/web udp 65535 allowed rule`},
	{"egress: if this field is empty the policy limits all outgoing traffic", `
spec: {podSelector: {matchLabels: {app: web}}, egress: [], policyTypes: [Egress]}`, `
		shop/web > data/db tcp 80 denied no-rule
		shop/web > 203.0.113.7 tcp 80 denied no-rule not-a-pod
		data/db > shop/web tcp 80 allowed`},
	{"egress: outgoing traffic is allowed if it matches at least one egress rule", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}, {ports: [{port: 53, protocol: UDP}]}]}`, `
		shop/web > shop/api tcp 80 allowed rule not-isolated
		shop/web > data/db udp 53 allowed
		shop/web > data/db tcp 53 denied`},
	{"policyTypes: a policy without egress section affects ingress only", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, `
		shop/web > data/db tcp 80 allowed not-isolated not-isolated
		data/db > shop/web tcp 80 denied`},
	{"policyTypes: a policy that contains an egress section affects egress, and all affect ingress", `
spec: {podSelector: {}, egress: [{to: [{podSelector: {}}]}]}`, `
		shop/web > data/db tcp 80 denied no-rule not-isolated
		data/db > shop/web tcp 80 denied not-isolated no-rule`},
	{"policyTypes: an empty egress section is none", `
spec: {podSelector: {}, egress: [], policyTypes: []}`, `
		shop/web > data/db tcp 80 allowed
		data/db > shop/web tcp 80 denied`},
	{"policyTypes: an egress-only policy says so explicitly", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}`, `
		data/db > shop/web tcp 80 allowed not-isolated not-isolated
		shop/web > data/db tcp 80 allowed rule not-isolated`},
	{"policyTypes: rules of a type that is not listed mean nothing", `
spec: {podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]}`, `
		data/db > shop/web tcp 80 allowed
		shop/web > data/db tcp 80 denied`},
	{"policyTypes: no egress is allowed with a value that includes Egress", `
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`, `
		shop/web > data/db tcp 80 denied no-rule not-isolated
		data/db > shop/web tcp 80 denied`},
	{"a rule: the traffic must match both ports and from", `
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]}`, `
		shop/web > shop/api tcp 80 allowed
		shop/web > shop/api tcp 81 denied
		shop/bare > shop/api tcp 80 denied`},
	{"ports: items are combined by OR", `
spec: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}`, `
		data/db > shop/web tcp 80 allowed
		data/db > shop/web udp 53 allowed
		data/db > shop/web udp 80 denied
		data/db > shop/web tcp 53 denied`},
	{"ports: empty or missing matches all ports", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [], from: [{namespaceSelector: {}}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{namespaceSelector: {}}]}]}`, `
		data/db > shop/web udp 1 allowed
		data/db > shop/api sctp 65535 allowed
		data/db > shop/api tcp 0 allowed
		203.0.113.7 > shop/web udp 1 denied`},
	{"from: empty or missing matches all sources", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [], ports: [{port: 80}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 80}]}]}`, `
		203.0.113.7 > shop/web tcp 80 allowed
		node:node-2 > shop/web tcp 80 allowed
		service:10.96.0.1 > shop/api tcp 80 unknown end rule
		203.0.113.7 > shop/api tcp 81 denied`},
	{"protocol: if not specified, it is TCP", `
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, `
		data/db > shop/web tcp 80 allowed
		data/db > shop/web udp 80 denied
		data/db > shop/web sctp 80 denied`},
	{"protocol: TCP, UDP or SCTP", `
spec: {podSelector: {}, ingress: [{ports: [{port: 80, protocol: SCTP}, {port: 81, protocol: UDP}]}]}`, `
		data/db > shop/web sctp 80 allowed
		data/db > shop/web udp 81 allowed
		data/db > shop/web tcp 80 denied
		data/db > shop/web tcp 81 denied`},
	{"port: not provided, it matches all names and numbers of the protocol", `
spec: {podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{}]}]}`, `
		data/db > shop/web udp 1 allowed
		data/db > shop/web udp 65535 allowed
		data/db > shop/web tcp 80 denied
		data/db > shop/api tcp 80 allowed
		data/db > shop/api sctp 80 denied`},
	{"port: a name is that of the pod's own port, whatever its number", `
spec: {podSelector: {}, ingress: [{ports: [{port: http}]}]}`, `
		data/db > shop/web tcp 8080 allowed
		data/db > shop/web tcp 9090 denied
		data/db > shop/web-2 tcp 9090 allowed
		data/db > shop/web-2 tcp 8080 denied
		data/db > shop/api tcp 80 allowed
		data/db > shop/bare tcp 80 denied
		data/db > shop/web udp 8080 denied`},
	{"port: a name counts for its protocol only", `
spec: {podSelector: {}, ingress: [{ports: [{port: metrics, protocol: UDP}, {port: metrics, protocol: TCP}]}]}`, `
		data/db > shop/web udp 8080 allowed
		data/db > shop/web tcp 8080 denied`},
	{"port: for egress a name is the destination's", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`, `
		shop/web > shop/api tcp 80 allowed
		shop/web > shop/api tcp 8080 denied
		shop/api > shop/web tcp 8080 allowed
		shop/web > data/api tcp 80 allowed
		shop/web > data/db tcp 80 denied
		shop/web > 203.0.113.7 tcp 80 denied
		shop/web > service:10.96.0.1 tcp 80 unknown end end`},
	{"endPort: the range from port to endPort, inclusive", `
spec: {podSelector: {}, ingress: [{ports: [{port: 8000, endPort: 8002}, {port: 9000, endPort: 9000}, {port: 65000, endPort: 65535, protocol: UDP}]}]}`, `
		data/db > shop/web tcp 7999 denied
		data/db > shop/web tcp 8000 allowed
		data/db > shop/web tcp 8001 allowed
		data/db > shop/web tcp 8002 allowed
		data/db > shop/web tcp 8003 denied
		data/db > shop/web tcp 9000 allowed
		data/db > shop/web tcp 9001 denied
		data/db > shop/web udp 65535 allowed
		data/db > shop/web udp 64999 denied`},
	{"ipBlock: a CIDR that is allowed", `
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: "2001:db8::/64"}}]}]}`, `
		203.0.113.0 > shop/web tcp 80 allowed
		203.0.113.255 > shop/web tcp 80 allowed
		203.0.114.0 > shop/web tcp 80 denied
		203.0.112.255 > shop/web tcp 80 denied
		2001:db8::1 > shop/web tcp 80 allowed
		2001:db8:0:0:ffff:ffff:ffff:ffff > shop/web tcp 80 allowed
		2001:db8:0:1:: > shop/web tcp 80 denied`},
	{"ipBlock: except describes CIDRs that are not included", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 203.0.113.7/32]}}]}]}`, `
		shop/web > 203.0.113.6 tcp 80 allowed
		shop/web > 203.0.113.7 tcp 80 denied
		shop/web > 203.0.113.8 tcp 80 allowed
		shop/web > 9.255.255.255 tcp 80 allowed
		shop/web > 10.0.0.0 tcp 80 denied
		shop/web > 11.0.0.0 tcp 80 allowed
		shop/web > 255.255.255.255 tcp 80 allowed
		shop/web > data/db tcp 80 denied
		shop/web > 2001:db8::1 tcp 80 denied`},
	{"ipBlock: what one block excepts another may include", `
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.2.0/24]}}]}, {to: [{ipBlock: {cidr: 10.0.2.1/32}}]}]}`, `
		shop/web > data/db tcp 80 allowed
		shop/web > data/api tcp 80 denied`},
	{"ipBlock: it matches the addresses of pods too", `
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.2.0/24, except: [10.0.2.2/32]}}]}]}`, `
		data/db > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 denied
		data/db@fd00::2:1 > shop/web@fd00::1:1 tcp 80 denied
		shop/api > shop/web tcp 80 denied`},
	{"ipBlock: it matches nodes, and with them hostNetwork pods, by address", `
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}]}]}`, `
		node:node-1 > shop/web-2 tcp 80 allowed
		ops/exporter > shop/web-2 tcp 80 allowed
		node:node-2 > shop/web tcp 80 denied`},
	{"ipBlock: bits behind the prefix do not count", `
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.77/24}}]}]}`, `
		203.0.113.1 > shop/web tcp 80 allowed`},
	{"hostNetwork pods are neither selected nor matched by selectors", `
metadata: {namespace: ops, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, `
		203.0.113.7 > ops/exporter tcp 9100 allowed not-a-pod not-a-pod
		203.0.113.7 > ops/probe tcp 9100 denied
		ops/exporter > shop/web-2 tcp 80 denied`},
	{"a peer's podSelector alone selects pods in the policy's own namespace", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 denied
		shop/bare > shop/web tcp 80 denied`},
	{"a peer's podSelector, if present but empty, selects all pods", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, `
		shop/bare > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 denied
		203.0.113.7 > shop/web tcp 80 denied
		unknown:10.0.9.9 > shop/web tcp 80 unknown end`},
	{"a peer's namespaceSelector alone selects all pods of the namespaces", `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}`, `
		data/db > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 allowed
		shop/api > shop/web tcp 80 denied
		ops/probe > shop/web tcp 80 denied`},
	{"a peer's namespaceSelector, if present but empty, selects all namespaces", `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, `
		data/db > shop/web tcp 80 allowed
		ops/probe > shop/web tcp 80 allowed
		shop/bare > shop/web tcp 80 allowed
		203.0.113.7 > shop/web tcp 80 denied
		node:node-2 > shop/web tcp 80 denied`},
	{"both selectors in one peer: the pods of the namespaces", `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}, podSelector: {matchLabels: {app: api}}}]}]}`, `
		data/api > shop/web tcp 80 allowed
		shop/api > shop/web tcp 80 allowed
		data/db > shop/web tcp 80 denied
		ops/probe > shop/web tcp 80 denied`},
	{"both selectors as two peers: either", `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: api}}}]}]}`, `
		data/db > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 allowed
		shop/api > shop/web tcp 80 allowed
		shop/bare > shop/web tcp 80 denied
		ops/probe > shop/web tcp 80 denied`},
	{"every namespace has the label kubernetes.io/metadata.name", `
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [ops]}]}}]}]}`, `
		ops/probe > shop/web tcp 80 allowed
		data/db > shop/web tcp 80 denied`},
	{"matchLabels and matchExpressions are ANDed", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: back}, matchExpressions: [{key: app, operator: NotIn, values: [db, cache]}]}, namespaceSelector: {}}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		data/db > shop/web tcp 80 denied
		data/api > shop/web tcp 80 denied`},
	{"the operator In", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [api, db]}]}, namespaceSelector: {}}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		data/db > shop/web tcp 80 allowed
		shop/bare > shop/web tcp 80 denied
		ops/probe > shop/web tcp 80 denied`},
	{"the operator NotIn holds without the label too", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [api, db]}]}, namespaceSelector: {}}]}]}`, `
		shop/bare > shop/web tcp 80 allowed
		ops/probe > shop/web tcp 80 allowed
		shop/api > shop/web tcp 80 denied`},
	{"the operator Exists holds for an empty value too", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}, namespaceSelector: {}}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 denied`},
	{"the operator DoesNotExist", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}, namespaceSelector: {}}]}]}`, `
		data/api > shop/web tcp 80 allowed
		shop/api > shop/web tcp 80 denied`},
	{"a label with an empty value is not a missing one", `
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {tier: ""}}, namespaceSelector: {}}]}]}`, `
		shop/api > shop/web tcp 80 allowed
		data/api > shop/web tcp 80 denied`},
	{"both the egress of the source and the ingress of the destination need to allow it", `
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]}
---
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]}`, `
		shop/web > shop/api tcp 80 allowed rule rule
		shop/web > shop/api tcp 81 denied rule no-rule
		shop/web > shop/bare tcp 80 denied no-rule not-isolated
		shop/bare > shop/api tcp 80 denied not-isolated no-rule`},
	{"reply traffic is implicitly allowed: the source's ingress is not asked", `
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`, `
		shop/web > shop/api tcp 80 allowed not-isolated not-isolated
		shop/api > shop/web tcp 80 denied`},
	{"a pod cannot block access to itself", `
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`, `
		shop/web > shop/web tcp 80 allowed same-pod same-pod
		shop/web > shop/web icmp 0 allowed same-pod same-pod
		shop/web > shop/web-2 tcp 80 denied`},
	{"a policy has no effect in other namespaces", `
metadata: {namespace: data, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`, `
		shop/web > shop/api tcp 80 allowed
		shop/web > data/db tcp 80 denied`},
	{"protocols other than TCP, UDP and SCTP are not defined where a pod is isolated", `
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{}], egress: [{to: [{podSelector: {}}]}]}`, `
		shop/api > shop/web icmp 0 unknown not-isolated protocol
		shop/web > shop/api icmp 0 unknown protocol not-isolated
		shop/api > shop/web 47 0 unknown
		shop/web > shop/api icmpv6 0 unknown
		shop/api > data/db icmp 0 allowed`},
}
