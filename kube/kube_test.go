package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/flowaudit/flowaudit/flow"
)

var (
	t0 = time.Unix(1_700_000_000, 0)
	t1 = t0.Add(time.Hour)
)

func pod(name, ip string, extra ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {role: %s, pod-template-hash: abc}%s}
spec: {nodeName: n1}
status: {phase: Running, podIPs: [{ip: %s}]}
---`, name, name, strings.Join(extra, ""), ip)
}

func load(t *testing.T, text string) *Index {
	t.Helper()
	x := NewIndex()
	o := &Objects{}
	o.Problems = decodeFile("test.yaml", []byte(text), o)
	x.Replace(o, t0)
	return x
}

func who(x *Index, addr string, at time.Time) string {
	e := x.Endpoint(netip.MustParseAddr(addr), at)
	return strings.Trim(fmt.Sprintf("%s %s/%s %s/%s %s", e.Kind, e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name, e.Node), " ")
}

func TestEndpoint(t *testing.T) {
	owned := func(kind, name string) string {
		return fmt.Sprintf(`, ownerReferences: [{apiVersion: v1, kind: %s, name: %s, uid: u, controller: true}]`, kind, name)
	}
	const replicaSet = `
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: odd, namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]}
---`
	const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: nightly-1, namespace: shop, ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: nightly, uid: u, controller: true}]}
---`
	const node = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.9.0.0/24, podCIDRs: [10.9.0.0/24, "fd09::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: Hostname, address: n1}]}
---`
	const service = `
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, "fd00::1"], externalIPs: [203.0.113.9], ports: [{port: 3306, nodePort: 30306}]}
---`
	const balanced = `
apiVersion: v1
kind: Service
metadata: {name: lb, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}
---`
	const apiServer = `
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{name: https, port: 443, targetPort: 6443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443, protocol: TCP}]
endpoints: [{addresses: [203.0.113.1], conditions: {ready: true}}]
---`
	const host = `
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: kube-system}
spec: {nodeName: n1, hostNetwork: true}
status: {podIP: 192.168.0.1}
---`
	done := strings.Replace(pod("old", "10.0.0.1"), "Running", "Succeeded", 1)
	for _, c := range []struct{ name, objects, addr, want string }{
		{"a bare pod is its own workload", pod("web", "10.0.0.1"), "10.0.0.1", "pod shop/web Pod/web n1"},
		{"IPv6", pod("web", `"fd00::5"`), "fd00::5", "pod shop/web Pod/web n1"},
		{"a ReplicaSet's owner is the workload", replicaSet + pod("web-x", "10.0.0.1", owned("ReplicaSet", "odd")), "10.0.0.1", "pod shop/web-x Deployment/web n1"},
		{"without the ReplicaSet its name tells", pod("web-x", "10.0.0.1", owned("ReplicaSet", "web-abc")), "10.0.0.1", "pod shop/web-x Deployment/web n1"},
		{"a CronJob's pod", job + pod("n-x", "10.0.0.1", owned("Job", "nightly-1")), "10.0.0.1", "pod shop/n-x CronJob/nightly n1"},
		{"a StatefulSet's pod", pod("db-0", "10.0.0.1", owned("StatefulSet", "db")), "10.0.0.1", "pod shop/db-0 StatefulSet/db n1"},
		{"another controller, by its kind", pod("r-0", "10.0.0.1", owned("Rollout", "r")), "10.0.0.1", "pod shop/r-0 Rollout/r n1"},
		{"a static pod", pod("etcd-n1", "10.0.0.1", owned("Node", "n1")), "10.0.0.1", "pod shop/etcd-n1 Pod/etcd-n1 n1"},
		{"a node", node, "192.168.0.1", "node / / n1"},
		{"a hostNetwork pod is its node", node + host, "192.168.0.1", "node / / n1"},
		{"a Service", service, "10.96.0.1", "service shop/ Service/db"},
		{"a completed pod's address belongs to the next", done + pod("new", "10.0.0.1"), "10.0.0.1", "pod shop/new Pod/new n1"},
		{"two pods with one address: neither", pod("a", "10.0.0.1") + pod("b", "10.0.0.1"), "10.0.0.1", "ambiguous / /"},
		{"an address of nobody is outside", pod("web", "10.0.0.1"), "192.0.2.1", "outside / /"},
		{"an address of nobody among pods' is unknown", pod("web", "10.0.0.1"), "10.0.0.2", "unknown / /"},
		{"an address of nobody in a node's podCIDR is unknown", node, "10.9.0.1", "unknown / /"},
		{"a ClusterIP of nobody among Services' is unknown", node + service, "10.96.0.2", "unknown / /"},
		{"the API server", node + apiServer, "203.0.113.1", "apiserver default/ Service/kubernetes"},
		{"the API server's Service", node + apiServer, "10.96.0.9", "service default/ Service/kubernetes"},
		{"an API server on a node is the node", node + strings.ReplaceAll(apiServer, "203.0.113.1", "192.168.0.1"), "192.168.0.1", "node / / n1"},
		{"a headless Service has no address", node + strings.ReplaceAll(service, "10.96.0.1", "None"), "10.96.0.1", "outside / /"},
		{"an ExternalName Service has no address", node + strings.Replace(service, "{clusterIP", "{type: ExternalName, externalName: example.org, clusterIP", 1), "10.96.0.1", "outside / /"},
		{"a load balancer's address", node + service + balanced, "203.0.113.10", "service shop/ Service/lb"},
		{"a pod before a Service that claims its address", pod("web", "203.0.113.9") + service, "203.0.113.9", "pod shop/web Pod/web n1"},
		{"loopback is never outside", pod("web", "10.0.0.1"), "127.0.0.1", "unknown / /"},
		{"an empty index knows nothing", "", "192.0.2.1", "unknown / /"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := load(t, c.objects)
			if got := who(x, c.addr, t0); got != c.want {
				t.Errorf("%s is %q, want %q (problems %v)", c.addr, got, c.want, x.Stats().Problems)
			}
		})
	}
	t.Run("a Service's addresses and ports", func(t *testing.T) {
		x := load(t, node+service)
		for _, c := range []struct {
			addr     string
			port     uint16
			protocol flow.Protocol
			want     bool
		}{
			{"10.96.0.1", 3306, flow.TCP, true},
			{"fd00::1", 3306, flow.TCP, true},
			{"203.0.113.9", 3306, flow.TCP, true},
			{"192.168.0.1", 30306, flow.TCP, true},
			{"10.96.0.1", 3306, flow.UDP, false},
			{"10.96.0.1", 80, flow.TCP, false},
		} {
			s := x.Service(netip.MustParseAddr(c.addr), c.port, c.protocol, t0)
			if (s != nil) != c.want || s != nil && s.Name != "db" {
				t.Errorf("%s:%d/%s is %+v", c.addr, c.port, c.protocol, s)
			}
		}
	})
	t.Run("volatile labels are no part of who it is", func(t *testing.T) {
		e := load(t, pod("web", "10.0.0.1")).Endpoint(netip.MustParseAddr("10.0.0.1"), t0)
		if len(e.Labels) != 1 || e.Labels["role"] != "web" || e.Identity != Identity("shop", nil, map[string]string{"role": "web"}) {
			t.Errorf("%+v", e)
		}
	})
}

func TestHistory(t *testing.T) {
	x := NewIndex()
	replace := func(at time.Time, text string) {
		o := &Objects{}
		o.Problems = decodeFile("test.yaml", []byte(text), o)
		x.Replace(o, at)
	}
	replace(t0, pod("old", "10.0.0.1")+pod("stays", "10.0.0.2"))
	before := x.Endpoint(netip.MustParseAddr("10.0.0.2"), t0)
	replace(t1, pod("new", "10.0.0.1")+pod("stays", "10.0.0.2"))
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{t0.Add(-time.Hour), "pod shop/old Pod/old n1"},
		{t1.Add(-1), "pod shop/old Pod/old n1"},
		{t1, "pod shop/new Pod/new n1"},
		{t1.Add(time.Hour), "pod shop/new Pod/new n1"},
	} {
		if got := who(x, "10.0.0.1", c.at); got != c.want {
			t.Errorf("at %s: %q, want %q", c.at, got, c.want)
		}
	}
	if x.Endpoint(netip.MustParseAddr("10.0.0.2"), t1) != before {
		t.Error("a holder that stayed has another endpoint")
	}
	replace(t1.Add(historyKept+time.Minute), pod("new", "10.0.0.1"))
	if got := who(x, "10.0.0.1", t0); got != "unknown / /" {
		t.Errorf("after %s the old holder is still known: %q", historyKept, got)
	}
}

func TestProblemsNameTheThing(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"broken YAML", "a: 1\n---\nb: [", "test.yaml:3: "},
		{"an unknown kind", "apiVersion: v9\nkind: Pod\nmetadata: {name: x}", `test.yaml:1: Pod x: apiVersion "v9", kind "Pod" is not one that is used`},
		{"an unknown field", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspecs: {}", `test.yaml:1: Pod x: json: unknown field "specs"`},
		{"no name", "apiVersion: v1\nkind: Pod", "test.yaml:1: Pod: metadata.name is missing"},
		{"a pod without addresses", "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: ns}", "Pod ns/x: has no address in status.podIPs"},
		{"no address", strings.Replace(pod("x", "10.0.0.1"), "10.0.0.1", "10.0.0.300", 1), `Pod shop/x: address "10.0.0.300" is none`},
		{"an item of a List", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Nope}]", "test.yaml:1: item 1: Nope: "},
		{"a claim on another's address", pod("a", "10.0.0.1") + pod("b", "10.0.0.1"), "Pod shop/b: address 10.0.0.1 is also claimed by Pod shop/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := pod("good", "10.0.0.9")
			x := load(t, c.text+"\n---"+good)
			if !slices.ContainsFunc(x.Stats().Problems, func(p string) bool { return strings.HasPrefix(p, c.want) }) {
				t.Errorf("problems %q, want one that begins with %q", x.Stats().Problems, c.want)
			}
			if got := who(x, "10.0.0.9", t0); got != "pod shop/good Pod/good n1" {
				t.Errorf("the rest was lost: %q", got)
			}
		})
	}
}

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", pod("a", "10.0.0.1"))
	write("sub/b.yml", pod("b", "10.0.0.2"))
	write("notes.txt", "not: [yaml")
	x := NewIndex()
	m, err := OpenManifests(dir, x, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.watch.Close()
	if s := x.Stats(); s.Pods != 2 || len(s.Problems) != 0 {
		t.Fatalf("%+v, want 2 pods", s)
	}
	t.Run("a file that breaks keeps its last content", func(t *testing.T) {
		write("a.yaml", "kind: [")
		if err := m.load(t1); err != nil {
			t.Fatal(err)
		}
		if s := x.Stats(); s.Pods != 2 || len(s.Problems) != 2 {
			t.Errorf("%+v, want 2 pods and two problems", s)
		}
	})
	t.Run("a file that goes takes its objects along", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "sub/b.yml")); err != nil {
			t.Fatal(err)
		}
		if err := m.load(t1); err != nil {
			t.Fatal(err)
		}
		if got := who(x, "10.0.0.2", t1); got != "unknown / /" {
			t.Errorf("10.0.0.2 is %q", got)
		}
	})
	t.Run("a directory that is not there is an error", func(t *testing.T) {
		if _, err := OpenManifests(dir+"/none", NewIndex(), slog.New(slog.DiscardHandler)); err == nil {
			t.Error("no error")
		}
	})
}

func TestFollowWaitsUntilFilesAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		events := make(chan fsnotify.Event)
		var loads atomic.Int32
		done := make(chan struct{})
		go func() { follow(ctx, events, nil, func() { loads.Add(1) }); close(done) }()
		for range 5 {
			events <- fsnotify.Event{}
			time.Sleep(settle / 2)
		}
		if n := loads.Load(); n != 0 {
			t.Errorf("%d loads while files change", n)
		}
		time.Sleep(settle)
		synctest.Wait()
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
		stop()
		<-done
	})
}

func FuzzDecodeFile(f *testing.F) {
	f.Add([]byte(pod("a", "10.0.0.1")))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: []"))
	f.Add([]byte("---\n---\n# c\n--- x"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		o := &Objects{}
		o.Problems = decodeFile("f", b, o)
		NewIndex().Replace(o, t0)
	})
}
