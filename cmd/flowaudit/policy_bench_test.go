package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkPolicyEval is the whole of policy eval: 1 million connections among
// 5,000 pods of 200 namespaces under 2,000 policies, all files read.
func BenchmarkPolicyEval(b *testing.B) {
	const namespaces, pods, policies, rows = 200, 5000, 2000, 1_000_000
	r := rand.New(rand.NewPCG(1, 2))
	dir := b.TempDir()
	var cluster, connections bytes.Buffer
	for n := range namespaces {
		fmt.Fprintf(&cluster, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns-%d\n  labels:\n    team: t%d\n---\n", n, n%20)
	}
	names := make([]string, pods)
	for p := range pods {
		n, app := p%namespaces, p/namespaces%10
		names[p] = fmt.Sprintf("ns-%d/app%d-%d", n, app, p)
		fmt.Fprintf(&cluster, `apiVersion: v1
kind: Pod
metadata:
  name: app%d-%d
  namespace: ns-%d
  labels:
    app: app%[1]d
    tier: tier%[4]d
spec:
  nodeName: node-%[5]d
  containers:
  - name: main
    ports:
    - name: http
      containerPort: %[6]d
status:
  phase: Running
  podIP: 10.0.%[7]d.%[8]d
---
`, app, p, n, p%3, p%100, 8000+app, p>>8, p&255)
	}
	for i := range policies {
		fmt.Fprintf(&cluster, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: pol-%d
  namespace: ns-%d
spec:
  podSelector:
    matchLabels:
      app: app%d
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: app%d
    - namespaceSelector:
        matchLabels:
          team: t%d
    ports:
    - port: http
    - port: 443
  egress:
  - to:
    - namespaceSelector: {}
    ports:
    - port: 53
      protocol: UDP
  - to:
    - ipBlock:
        cidr: 10.0.0.0/8
        except: [10.0.%d.0/24]
---
`, i, i%namespaces, i/namespaces%10, r.IntN(10), r.IntN(20), r.IntN(20))
	}
	connections.WriteString("src,dst,protocol,port\n")
	ports := []int{80, 443, 8001, 8003, 53, 3306}
	for range rows {
		fmt.Fprintf(&connections, "%s,%s,%s,%d\n", names[r.IntN(pods)], names[r.IntN(pods)], []string{"TCP", "TCP", "UDP"}[r.IntN(3)], ports[r.IntN(len(ports))])
	}
	for name, content := range map[string][]byte{"cluster.yaml": cluster.Bytes(), "connections.csv": connections.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		code := run(context.Background(), environment{
			name: "flowaudit", stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" }, now: time.Now,
			args: []string{"policy", "eval", "--manifests", filepath.Join(dir, "cluster.yaml"), "--connections", filepath.Join(dir, "connections.csv")},
		})
		if code != exitOK {
			b.Fatalf("exit %d", code)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/connection")
}
