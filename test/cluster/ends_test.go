package cluster_test

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

const ends = `apiVersion: v1
kind: Pod
metadata: {name: server, namespace: ends, labels: {name: server}}
spec: {nodeName: node2, containers: [{name: server, image: "test/server:1", ports: [{containerPort: 8080}, {containerPort: 8081}, {containerPort: 8082}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: ends}
spec: {type: NodePort, selector: {name: server}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: ends, labels: {name: host}}
spec: {nodeName: node1, hostNetwork: true, containers: [{name: host, image: "test/host:1"}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: ends}
spec:
  schedule: "0 3 31 2 *"
  jobTemplate: {spec: {template: {metadata: {labels: {name: nightly}}, spec: {restartPolicy: Never, nodeSelector: {kubernetes.io/hostname: node1}, containers: [{name: job, image: "test/job:1"}]}}}}
`

// TestOtherEnds: ends that are no pod of a Deployment.
func TestOtherEnds(t *testing.T) {
	namespace(t, "ends")
	must(t, lab.Apply(t.Context(), ends))
	_, err := lab.Kubectl(t.Context(), "", "-n", "ends", "create", "job", "tonight", "--from=cronjob/nightly")
	must(t, err)
	server, host, job := one(t, "server"), one(t, "host"), one(t, "nightly")
	must(t, lab.ServiceReady(t.Context(), "ends", "server", 1))
	outside, err := lab.Outside()
	must(t, err)
	t.Cleanup(func() {
		if err := outside.Close(); err != nil {
			t.Error(err)
		}
	})

	serverEnd := ledger.End{Addr: server.IPv4, Pod: "ends/server", Workload: "Pod/server", Node: "node2"}
	var deeds []ledger.Deed
	talk := func(from traffic.Place, source ledger.End, to string, d ledger.Deed) {
		t.Helper()
		must(t, traffic.Talk(t.Context(), from, "tcp", to, 1000))
		d.Verdict, d.Protocol, d.Source, d.Destination, d.Connections, d.Bytes = flow.VerdictAllowed, flow.TCP, source, serverEnd, 1, 1000
		deeds = append(deeds, d)
	}
	direct := netip.AddrPortFrom(server.IPv4, 8081).String()

	// A pod in the node's network cannot be told from the node.
	talk(host, ledger.End{Addr: host.Node.IPv4, Pod: "node", Node: "node1"}, direct, ledger.Deed{Port: 8081})
	// Through a NodePort of one node to a pod of the other, which sees the node's address.
	nodePort := netip.AddrPortFrom(lab.Nodes[0].IPv4, 30080).String()
	talk(outside, ledger.End{Addr: outside.IPv4, Pod: "outside"}, nodePort, ledger.Deed{Port: 8080, Service: "ends/server"})
	// A Job's pod, and the pod that has its address when it has completed.
	talk(job, ledger.End{Addr: job.IPv4, Pod: job.Key.String(), Workload: "CronJob/nightly", Node: "node1"}, direct, ledger.Deed{Port: 8081})
	newSecond()
	must(t, lab.Complete(t.Context(), job))
	heir := barePod(t, "ends", "heir", "node1")
	if heir.IPv4 != job.IPv4 {
		t.Fatalf("the heir has %s, want the Job's %s", heir.IPv4, job.IPv4)
	}
	talk(heir, ledger.End{Addr: heir.IPv4, Pod: "ends/heir", Workload: "Pod/heir", Node: "node1"}, netip.AddrPortFrom(server.IPv4, 8082).String(), ledger.Deed{Port: 8082})
	// The API server, which is no pod and no node.
	deeds = append(deeds, askAPI(t, heir))

	compare(t, "ends", deeds)
}

// askAPI connects to the API server's Service.
func askAPI(t *testing.T, from *cluster.Pod) ledger.Deed {
	t.Helper()
	service, err := lab.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	must(t, err)
	must(t, lab.ServiceReady(t.Context(), "default", "kubernetes", 1))
	c, err := traffic.Connect(t.Context(), from, "tcp", netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 443).String())
	must(t, err)
	must(t, c.Close())
	return ledger.Deed{
		Verdict: flow.VerdictAllowed, Protocol: flow.TCP, Port: 6443, Service: "default/kubernetes", Connections: 1,
		Source:      ledger.End{Addr: from.IPv4, Pod: from.Key.String(), Workload: "Pod/" + from.Key.Name, Node: from.Node.Name},
		Destination: ledger.End{Addr: netip.MustParseAddr("10.99.0.1"), Pod: "apiserver", Workload: "Service/kubernetes"},
	}
}

// one is the pod with a name label.
func one(t *testing.T, name string) *cluster.Pod {
	t.Helper()
	pods, err := lab.Pods(t.Context(), "ends", "name="+name, 1)
	must(t, err)
	return pods[0]
}
