package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// goodNode is a node on which nothing is wrong.
func goodNode() agent.Node {
	return agent.Node{
		CNI:     []agent.Configuration{{File: "10-kuberouter.conflist", Types: []string{"bridge", "portmap"}}},
		Plugins: []agent.Plugin{{Name: "kube-router", Enforcement: agent.EnforcementNetfilter, Why: "netfilter has KUBE-ROUTER-FORWARD"}},
		Sources: []agent.Found{{Source: "kube-router", Why: "netfilter has KUBE-ROUTER-FORWARD"}, {Source: "tap", Why: "conntrack tells the rest"}},
		Groups:  map[uint16]string{4242: "flowaudit-agent (pid 7)"},
		Sysctls: map[string]string{
			"net.netfilter.nf_conntrack_acct": "1", "net.netfilter.nf_conntrack_events": "2", "net.netfilter.nf_conntrack_timestamp": "1",
			sysctlCount: "1200", sysctlMax: "262144", sysctlBridge: "1", "net.core.rmem_max": "67108864", sysctlIPVS: "1",
		},
		Services: 12,
		Bridges:  []string{"kube-bridge"},
		Features: map[string]error{agent.FeatureNFTables: nil, agent.FeatureNFLOG: nil, agent.FeatureConntrack: nil},
	}
}

// badNode has all that can be wrong.
func badNode() agent.Node {
	n := goodNode()
	n.CNI = append([]agent.Configuration{{File: "00-broken.conf"}}, n.CNI...)
	n.Plugins = []agent.Plugin{{Name: "Flannel", Enforcement: agent.EnforcementNone, Why: "/run/flannel/subnet.env is there"}}
	n.Sources, n.Notes = nil, []string{"nflog:100 is not read: ulogd (pid 9) has it, and a group has one reader"}
	n.Groups = map[uint16]string{100: "ulogd (pid 9)", 4: "the program with netlink port 12"}
	n.Sysctls = map[string]string{
		"net.netfilter.nf_conntrack_acct": "0", "net.netfilter.nf_conntrack_events": "0", "net.netfilter.nf_conntrack_timestamp": "0",
		sysctlCount: "250000", sysctlMax: "262144", "net.core.rmem_max": "212992", sysctlIPVS: "0",
	}
	n.Bridges = []string{"cni0"}
	n.Features = map[string]error{agent.FeatureNFTables: nil, agent.FeatureNFLOG: errors.New("it is missing"), agent.FeatureConntrack: errors.New("operation not permitted")}
	return n
}

// examined runs doctor on a node.
func examined(t *testing.T, n agent.Node, c *collector, args ...string) string {
	t.Helper()
	env := map[string]string{}
	if c != nil {
		env["FLOWAUDIT_SERVER"] = c.listen(t)
	}
	var stdout, stderr strings.Builder
	args = append([]string{"doctor"}, args...)
	code := run(t.Context(), environment{
		name: "flowaudit", args: args, stdout: &stdout, stderr: &stderr, getenv: func(name string) string { return env[name] },
		now: func() time.Time { return here }, inspect: func() (agent.Node, error) { return n, nil },
	})
	return transcript(result{stdout.String(), stderr.String(), code}, args...)
}

func TestDoctorOfANode(t *testing.T) {
	golden(t, "doctor-node-well", examined(t, goodNode(), nil, "--only", "node"))
	golden(t, "doctor-node-ill", examined(t, badNode(), nil, "--only", "node"))
	golden(t, "doctor-node-json", examined(t, badNode(), nil, "--only", "node", "-o", "json"))
}

func TestDoctorOfAnEnforcingPluginBesideFlannel(t *testing.T) {
	n := badNode()
	n.Plugins = append(n.Plugins, agent.Plugin{Name: "kube-network-policies", Enforcement: agent.EnforcementNetfilter, Why: "w"})
	for _, c := range checkPlugins(&n) {
		if c.State == stateProblem {
			t.Errorf("%s: %s", c.About, c.Text)
		}
	}
}

func TestDoctorOfADockerBridgeIsANote(t *testing.T) {
	n := badNode()
	n.Bridges = []string{"docker0"}
	if c := checkBridges(&n); len(c) != 1 || c[0].State != stateNote {
		t.Errorf("checks %+v", c)
	}
	n.Bridges = nil
	if c := checkBridges(&n); len(c) != 0 {
		t.Errorf("without bridges: %+v", c)
	}
}

var seenColumns = []string{
	"policy_refs", "assessment", "verdict", "caveat", "reason", "node", "source_node", "destination_node", "connections", "last_seen", "source", "destination", "port", "protocol",
}

// seenConnections is a row of the question: connections from a pod of node-1 to one of node-2.
func seenConnections(t *testing.T, refs []flow.PolicyRef, assessment flow.Assessment, verdict flow.Verdict, caveat flow.Caveat, node string, n float64, age time.Duration) *structpb.ListValue {
	t.Helper()
	text, reason := "", flow.ReasonLogged
	if assessment == flow.AssessmentUnexplained {
		reason = flow.ReasonNoRoute
	}
	if len(refs) > 0 {
		b, err := json.Marshal(refs)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	return row(t, text, assessment.String(), verdict.String(), caveat.String(), reason.String(), node, "node-1", "node-2", n, here.Add(-age).UTC().Format(time.RFC3339), "shop/web-1", "shop/db-0", 3306.0, "tcp")
}

func side(policy, side string) flow.PolicyRef {
	return flow.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: policy, Side: side}
}

// clinic is a collector that saw rows, and has policies.
func clinic(t *testing.T, s *flowauditv1.StatusResponse, rows ...*structpb.ListValue) *collector {
	t.Helper()
	c := &collector{status: s, recorded: &recorded{}, run: []*flowauditv1.RunResponse{{Columns: seenColumns, Rows: rows, Coverage: coverageOf(wholeHour)}}}
	for name, types := range map[string][]networkingv1.PolicyType{"db": {"Ingress"}, "all": {"Ingress", "Egress"}} {
		object, err := json.Marshal(networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PolicyTypes: types}})
		if err != nil {
			t.Fatal(err)
		}
		c.recorded.changes = append(c.recorded.changes, flow.Change{Time: here.Add(-time.Hour), Kind: flow.ChangePolicy, Namespace: "shop", Name: name, Object: object})
	}
	return c
}

func twoNodes() *flowauditv1.StatusResponse {
	s := &flowauditv1.StatusResponse{Version: "1.2.3", Cluster: &flowauditv1.ClusterState{Nodes: 2}}
	for _, n := range []string{"node-1", "node-2"} {
		s.Agents = append(s.Agents, &flowauditv1.Agent{Node: n, LastSeen: here.UnixMilli()})
	}
	return s
}

func TestDoctorOfACluster(t *testing.T) {
	db, gone := []flow.PolicyRef{side("db", "ingress")}, []flow.PolicyRef{side("old", "ingress")}
	both := []flow.PolicyRef{side("all", "egress"), side("db", "ingress")}
	ill := []*structpb.ListValue{
		seenConnections(t, db, flow.AssessmentUnenforced, flow.VerdictAllowed, flow.CaveatNone, "node-1", 3, time.Minute),
		seenConnections(t, db, flow.AssessmentUnenforced, flow.VerdictAllowed, flow.CaveatNone, "node-2", 3, time.Second),
		seenConnections(t, gone, flow.AssessmentUnenforced, flow.VerdictAllowed, flow.CaveatNone, "node-2", 1, time.Hour),
		seenConnections(t, both, flow.AssessmentEnforced, flow.VerdictDenied, flow.CaveatNone, "node-1", 7, time.Minute),
		seenConnections(t, nil, flow.AssessmentUnexplained, flow.VerdictDenied, flow.CaveatNone, "node-1", 2, time.Minute),
		seenConnections(t, db, flow.AssessmentUnknown, flow.VerdictAllowed, flow.CaveatRecent, "node-2", 4, time.Minute),
	}
	status := sampleStatus()
	status.Cluster = &flowauditv1.ClusterState{Nodes: 3, Away: true, PolicyKinds: []string{"ciliumnetworkpolicies.cilium.io"}, PolicyDoubts: []string{"CiliumNetworkPolicy shop/l7: a rule has neither endpointSelector nor nodeSelector"}}
	status.Agents[0].Contradicted, status.Agents[0].Limits = 2, []string{"packets and bytes are absent"}
	well := seenConnections(t, db, flow.AssessmentEnforced, flow.VerdictDenied, flow.CaveatNone, "node-2", 7, time.Minute)
	golden(t, "doctor-cluster-well", examined(t, goodNode(), clinic(t, twoNodes(), well), "--only", "cluster"))
	golden(t, "doctor-cluster-ill", examined(t, goodNode(), clinic(t, status, ill...), "--only", "cluster"))
	golden(t, "doctor-cluster-json", examined(t, goodNode(), clinic(t, twoNodes(), ill...), "--only", "cluster", "-o", "json", "--since", "7d"))
	golden(t, "doctor-cluster-empty", examined(t, goodNode(), clinic(t, &flowauditv1.StatusResponse{}), "--only", "cluster"))
	golden(t, "doctor", examined(t, goodNode(), clinic(t, twoNodes(), well)))
}

// TestWhatTrafficShows: who is blamed, or praised, for what was seen between
// node-1 and node-2.
func TestWhatTrafficShows(t *testing.T) {
	egress, ingress := side("e", "egress"), side("i", "ingress")
	for _, c := range []struct {
		name       string
		refs       []flow.PolicyRef
		assessment flow.Assessment
		verdict    flow.Verdict
		nodes      []string // that report
		want       string
	}{
		{"the source's node refuses", []flow.PolicyRef{egress, ingress}, flow.AssessmentEnforced, flow.VerdictDenied, []string{"node-1"}, "shop/e egress node-1 enforced 5 0 0 0"},
		{"the destination's node refuses", []flow.PolicyRef{egress, ingress}, flow.AssessmentEnforced, flow.VerdictDenied, []string{"node-2"}, "shop/i ingress node-2 enforced 5 0 0 0"},
		{
			"what passes was let through on both sides, and counts once",
			[]flow.PolicyRef{egress, ingress},
			flow.AssessmentUnenforced, flow.VerdictAllowed,
			[]string{"node-1", "node-2"},
			"shop/e egress node-1 unenforced 0 0 5 0; shop/i ingress node-2 unenforced 0 0 5 0",
		},
		{"nobody answers", []flow.PolicyRef{ingress}, flow.AssessmentEnforced, flow.VerdictUnanswered, []string{"node-1"}, "shop/i ingress node-2 inferred 0 5 0 0"},
		{"refused although a rule allows it", []flow.PolicyRef{egress, ingress}, flow.AssessmentUnexplained, flow.VerdictDenied, []string{"node-2"}, "shop/i ingress node-2 unexplained 0 0 0 5"},
		{"refused although no policy has a say", nil, flow.AssessmentUnexplained, flow.VerdictDenied, []string{"node-1"}, "  node-1 unexplained 0 0 0 5"},
		{"something else refused it, and no policy is to blame", []flow.PolicyRef{ingress}, flow.AssessmentUnexplained, flow.VerdictDenied, []string{"node-2"}, "  node-2 unexplained 0 0 0 5"},
		{"as policy says", []flow.PolicyRef{ingress}, flow.AssessmentAllowed, flow.VerdictAllowed, []string{"node-1"}, ""},
	} {
		var rows []seenRow
		reason := flow.ReasonLogged
		if strings.HasPrefix(c.name, "something else") {
			reason = flow.ReasonNoRoute
		}
		for _, n := range c.nodes {
			rows = append(rows, seenRow{policies: c.refs, Assessment: c.assessment.String(), Verdict: c.verdict.String(), Node: n, SourceNode: "node-1", DestinationNode: "node-2", Connections: 5, Reason: reason.String()})
		}
		var got []string
		for _, e := range withUnseen(weigh(rows), nil, nil) {
			got = append(got, fmt.Sprintf("%s %s %s %s %d %d %d %d", e.Policy, e.Side, e.Node, e.State, e.Refused, e.Inferred, e.Passed, e.Unexplained))
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
	}
}

func TestDoctorIsAskedWrongly(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--only", "pods"}, exitUsage, "--only"},
		{[]string{"-o", "yaml"}, exitUsage, "--output"},
		{[]string{"--only", "node"}, exitError, "this is no node"},
		{[]string{"--only", "cluster", "--server", "unix:/nowhere"}, exitError, "connect to the collector at unix:/nowhere"},
		{[]string{"--server", "unix:/nowhere"}, exitError, "connect to the collector at unix:/nowhere"},
		{[]string{"--server", "unix:/nowhere", "--tls"}, exitError, "connect"},
	} {
		r := flowaudit(t, nil, nil, append([]string{"doctor"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit code %d, %s", c.args, r.code, r.stderr)
		}
	}
	r := flowaudit(t, nil, map[string]string{}, "doctor")
	if r.code != exitError || !strings.Contains(r.stderr, "connect to the collector") {
		t.Errorf("without a node and a collector: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if said := examined(t, goodNode(), nil); !strings.Contains(said, "not asked: connect to the collector") || !strings.Contains(said, "exit code 0") {
		t.Errorf("without a collector: %s", said)
	}
}
