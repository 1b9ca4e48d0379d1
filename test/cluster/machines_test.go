package cluster_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
)

const realPods = `apiVersion: v1
kind: Namespace
metadata: {name: real}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: real}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      nodeSelector: {kubernetes.io/hostname: NODE-A}
      terminationGracePeriodSeconds: 1
      containers: [{name: box, image: "localhost/flowaudit/box:1", args: [serve, "8080", "9090"], ports: [{containerPort: 8080}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: real}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      nodeSelector: {kubernetes.io/hostname: NODE-B}
      terminationGracePeriodSeconds: 1
      containers: [{name: box, image: "localhost/flowaudit/box:1", args: [pause]}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: real}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: real}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}
`

const staticPod = `apiVersion: v1
kind: Pod
metadata: {name: static, namespace: real, labels: {app: static}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: box, image: "localhost/flowaudit/box:1", args: [serve, "7070"]}]}
`

// TestContainers: pods of a real kubelet are named as others are, static ones
// too, and a pod that a reboot gave another address has both.
func TestContainers(t *testing.T) {
	nodes := machines(t)
	must(t, lab.Apply(t.Context(), strings.NewReplacer("NODE-A", nodes[0].Name, "NODE-B", nodes[1].Name).Replace(realPods)))
	must(t, lab.NamespaceReady(t.Context(), "real"))
	must(t, os.WriteFile(filepath.Join(nodes[0].StaticPods(), "static.yaml"), []byte(staticPod), 0o600))

	server, client, static := container(t, "server"), container(t, "client"), container(t, "static")
	must(t, lab.enforcer.Sync(t.Context()))
	var deeds []ledger.Deed
	did := func(verdict flow.Verdict, to *corev1.Pod, port uint16, service string) {
		d := ledger.Deed{Verdict: verdict, Protocol: flow.TCP, Source: realEnd(client, "Deployment/client"), Port: port, Service: service, Connections: 1}
		switch to.Labels["app"] {
		case "server":
			d.Destination = realEnd(to, "Deployment/server")
		case "static":
			d.Destination = realEnd(to, "Pod/"+to.Name)
		}
		deeds = append(deeds, d)
	}
	talk := func() {
		t.Helper()
		must(t, lab.ServiceReady(t.Context(), "real", "server", 1))
		service := serviceAddr(t, "real", "server")
		must(t, lab.Exec(t.Context(), "real", client.Name, "talk", "tcp", netip.AddrPortFrom(service, 80).String()))
		did(flow.VerdictAllowed, server, 8080, "real/server")
		must(t, lab.Exec(t.Context(), "real", client.Name, "knock", "tcp", podAddr(server, 9090)))
		did(flow.VerdictDenied, server, 9090, "")
		must(t, lab.Exec(t.Context(), "real", client.Name, "talk", "tcp", podAddr(static, 7070)))
		did(flow.VerdictAllowed, static, 7070, "")
	}
	talk()
	t.Run("a probe", func(t *testing.T) { probeContainers(t, nodes) })
	// Nobody tells when a power cut ends a pod: what it did just before is named
	// until the news comes that it has another address, and ambiguous after that.
	compare(t, "real", deeds)

	before := server
	must(t, lab.Reboot(t.Context(), nodes[0]))
	server = moved(t, before)
	static = container(t, "static")
	if server.UID != before.UID {
		t.Fatalf("the reboot made another pod: %s", server.Name)
	}
	must(t, lab.enforcer.Sync(t.Context()))
	talk()
	compare(t, "real", deeds)
}

// machines are two nodes with a kubelet and an agent.
func machines(t *testing.T) []*cluster.Node {
	t.Helper()
	nodes, err := lab.AddMachines(t.Context(), 2)
	must(t, err)
	for _, n := range nodes {
		must(t, lab.enforcer.Add(t.Context(), n.Name, n))
	}
	must(t, lab.product.Watch(t.Context(), nodes))
	return nodes
}

// container is the one pod of an app.
func container(t *testing.T, app string) *corev1.Pod {
	t.Helper()
	pods, err := lab.Running(t.Context(), "real", "app="+app, 1)
	must(t, err)
	return pods[0]
}

// moved waits until a pod has another address than it had.
func moved(t *testing.T, before *corev1.Pod) *corev1.Pod {
	t.Helper()
	var now *corev1.Pod
	must(t, lab.product.Until(t.Context(), answerBy, "another address", func() error {
		now = container(t, before.Labels["app"])
		if now.Status.PodIP == before.Status.PodIP {
			return errors.New("it has the one from before the reboot")
		}
		return nil
	}))
	return now
}

func podAddr(p *corev1.Pod, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIP), port).String()
}

func realEnd(p *corev1.Pod, workload string) ledger.End {
	return ledger.End{Addr: netip.MustParseAddr(p.Status.PodIP), Pod: p.Namespace + "/" + p.Name, Workload: workload, Node: p.Spec.NodeName}
}

func serviceAddr(t *testing.T, namespace, name string) netip.Addr {
	t.Helper()
	s, err := lab.Client.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	return netip.MustParseAddr(s.Spec.ClusterIP)
}
