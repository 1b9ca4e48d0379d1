package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// guarded lets pods of one name reach the server.
func guarded(t *testing.T, namespace, who string) {
	t.Helper()
	must(t, lab.Apply(t.Context(), fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard, namespace: %s}
spec:
  podSelector: {matchLabels: {name: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {name: %s}}}]}]
`, namespace, who)))
}

func at8080(p *cluster.Pod) string { return netip.AddrPortFrom(p.IPv4, 8080).String() }

// finding is what doctor says of a policy on a node.
type finding struct {
	Policy, Side, Node, State, Example string
	Refused, Passed, Unexplained       uint64
}

// findings asks doctor about the policies of a namespace.
func findings(ctx context.Context, since time.Time, policy string) (all []finding, err error) {
	out, err := lab.product.Diagnosis(ctx, since)
	if err != nil {
		return nil, err
	}
	var d struct{ Policies []finding }
	if err := json.Unmarshal(out, &d); err != nil {
		return nil, fmt.Errorf("read diagnosis: %w", err)
	}
	for _, f := range d.Policies {
		if f.Policy == policy {
			all = append(all, f)
		}
	}
	return all, nil
}

// raiseBy is how long it may take from the first flow that policy denies until
// it is said that nobody enforces it.
const raiseBy = time.Minute

// TestNobodyEnforces: the API server takes policies that no network plugin
// knows. What they deny passes, and that is said with policy, pods and node.
func TestNobodyEnforces(t *testing.T) {
	must(t, lab.enforcer.Suspend())
	t.Cleanup(func() {
		if err := lab.enforcer.Resume(lab.ctx); err != nil {
			t.Error(err)
		}
	})
	namespace(t, "unguarded")
	server, client := barePod(t, "unguarded", "server", "node2", 8080), barePod(t, "unguarded", "client", "node1")
	guarded(t, "unguarded", "friend")
	since := time.Now()
	must(t, lab.product.Until(t.Context(), raiseBy, "unenforced to be raised", func() error {
		if err := traffic.Talk(t.Context(), client, "tcp", at8080(server), 100); err != nil {
			return err
		}
		flows, err := lab.product.Flows(t.Context(), "-n", "unguarded", "--assessment", "unenforced", "--since", since.Format(time.RFC3339Nano))
		if err != nil {
			return err
		}
		for i := range flows {
			if f := &flows[i]; f.Source.Pod == "client" && f.Destination.Pod == "server" && f.Destination.Node == "node2" &&
				len(f.Policies) == 1 && f.Policies[0].Name == "guard" && f.Verdict == flow.VerdictAllowed {
				return nil
			}
		}
		return fmt.Errorf("%d flows: %+v", len(flows), flows)
	}))
	got, err := findings(t.Context(), since, "unguarded/guard")
	must(t, err)
	for _, f := range got {
		if f.Node == "node2" && f.Side == "ingress" && f.State == "unenforced" && f.Passed > 0 && f.Refused == 0 && f.Example == "unguarded/client -> unguarded/server, tcp port 8080" {
			return
		}
	}
	t.Errorf("doctor says %+v", got)
}

// TestEverythingIsEnforced: policies change, pods come and go, agents are
// restarted, and no denied connection passes: nothing is unenforced.
func TestEverythingIsEnforced(t *testing.T) {
	const ns = "guarded"
	namespace(t, ns)
	server, friend, stranger := barePod(t, ns, "server", "node2", 8080), barePod(t, ns, "friend", "node1"), barePod(t, ns, "stranger", "node1")
	allowed := "friend"
	guarded(t, ns, allowed)
	must(t, lab.enforcer.Sync(t.Context()))
	since, changes, restarts := time.Now(), 0, 0
	for round := 0; time.Since(since) < turmoil(t); round++ {
		for _, p := range []*cluster.Pod{friend, stranger} {
			if p.Key.Name == allowed {
				must(t, traffic.Talk(t.Context(), p, "tcp", at8080(server), 100))
			} else {
				must(t, traffic.Knock(t.Context(), p, "tcp", at8080(server)))
			}
		}
		must(t, traffic.Knock(t.Context(), passer(t, ns, round), "tcp", at8080(server)))
		// For a while the same pod is allowed, so that flows are judged; then they change places often.
		if time.Since(since)%time.Minute > 35*time.Second && round%4 == 0 {
			allowed = map[string]string{"friend": "stranger", "stranger": "friend"}[allowed]
			guarded(t, ns, allowed)
			must(t, lab.enforcer.Sync(t.Context()))
			changes++
		}
		if round%8 == 7 {
			must(t, lab.product.Restart(lab.Nodes[restarts%2], restarts%4 > 1))
			restarts++
		}
		time.Sleep(time.Second / 2) // traffic goes on for a while; this waits for nothing
	}
	t.Logf("%d changes of the policy, %d restarts of agents", changes, restarts)
	if changes < 2 || restarts < 2 {
		t.Error("that is no turmoil")
	}
	must(t, lab.product.Until(t.Context(), answerBy, "refusals to be judged", func() error {
		got, err := findings(t.Context(), since, ns+"/guard")
		if err != nil {
			return err
		}
		for _, f := range got {
			if f.State == "unenforced" {
				t.Fatalf("doctor says %+v", got)
			}
			if f.Node == "node2" && f.State == "enforced" && f.Refused > 20 {
				return nil
			}
		}
		return fmt.Errorf("doctor says %+v", got)
	}))
	flows, err := lab.product.Flows(t.Context(), "-n", ns, "--assessment", "unenforced,unexplained", "--since", since.Format(time.RFC3339Nano))
	must(t, err)
	for i := range flows {
		t.Errorf("%s, by %s: %+v", flows[i].Assessment, flows[i].Node, flows[i])
	}
}

// passer is a pod that has just begun; the one before is gone.
func passer(t *testing.T, ns string, round int) *cluster.Pod {
	t.Helper()
	name := fmt.Sprintf("passer-%d", round)
	p := barePod(t, ns, name, lab.Nodes[round%2].Name)
	must(t, lab.enforcer.Sync(t.Context()))
	if round > 0 {
		now := int64(0)
		must(t, lab.Client.CoreV1().Pods(ns).Delete(t.Context(), fmt.Sprintf("passer-%d", round-1), metav1.DeleteOptions{GracePeriodSeconds: &now}))
	}
	return p
}

// turmoil is how long everything changes.
func turmoil(t *testing.T) time.Duration {
	t.Helper()
	if !soak() {
		return time.Minute
	}
	d, err := time.ParseDuration(os.Getenv("FLOWAUDIT_SOAK"))
	must(t, err)
	return d
}
