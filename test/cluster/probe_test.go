package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/test/cluster"
)

// probed is what doctor says of a probe.
type probed struct {
	Probe struct {
		Pairs []struct {
			Client, Server, Side, Node, State string
			AfterMillis                       int64 `json:"after_ms"`
		}
	}
	Problems int
}

// doctorProbe makes the command.
func doctorProbe(ctx context.Context, args ...string) *exec.Cmd {
	return lab.Plane().Command(ctx, filepath.Join(lab.bin, "flowaudit"), append([]string{
		"doctor", "--only", "probe", "--probe", "--kubeconfig", lab.Admin(), "-o", "json",
	}, args...)...)
}

// leftovers are the namespaces of probes.
func leftovers(t *testing.T) (names []string) {
	t.Helper()
	all, err := lab.Client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=flowaudit-probe"})
	must(t, err)
	for _, n := range all.Items {
		names = append(names, n.Name)
	}
	return names
}

// TestProbe: where policies are enforced a probe says so, by its own packets
// between pods of both nodes; where nobody enforces them it says that.
func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name, state string
		problems    int
	}{{"enforced", "enforced", 0}, {"nobody enforces", "unenforced", 8}} {
		t.Run(c.name, func(t *testing.T) {
			if c.state == "unenforced" {
				must(t, lab.enforcer.Suspend())
				t.Cleanup(func() {
					if err := lab.enforcer.Resume(lab.ctx); err != nil {
						t.Error(err)
					}
				})
			}
			var said strings.Builder
			cmd := doctorProbe(t.Context(), "--probe-nodes", "node1,node2", "--probe-timeout", "10s")
			cmd.Stderr = &said
			out, err := cmd.Output()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || c.problems == 0) {
				t.Fatalf("%v: %s", err, said.String())
			}
			var got probed
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if got.Problems != c.problems || len(got.Probe.Pairs) != 8 {
				t.Errorf("%d problems, want %d: %s", got.Problems, c.problems, out)
			}
			for _, p := range got.Probe.Pairs {
				if p.State != c.state || p.Side == "egress" && p.Node != p.Client || p.Side == "ingress" && p.Node != p.Server {
					t.Errorf("%+v, want %s", p, c.state)
				}
			}
			if left := leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// probeContainers probes machines: their kubelets run the probe's containers
// from an image, and its readiness probes in them.
func probeContainers(t *testing.T, nodes []*cluster.Node) {
	t.Helper()
	var said strings.Builder
	cmd := doctorProbe(t.Context(), "--probe-nodes", nodes[0].Name+","+nodes[1].Name, "--probe-image", cluster.AgnhostImage)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, said.String(), out)
	}
	var got probed
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Problems > 0 || len(got.Probe.Pairs) != 8 {
		t.Errorf("%s", out)
	}
	t.Logf("%s", out)
}

// TestAnInterruptedProbeLeavesNothing, as on Ctrl-C.
func TestAnInterruptedProbeLeavesNothing(t *testing.T) {
	var said strings.Builder
	cmd := doctorProbe(context.WithoutCancel(t.Context()), "--probe-nodes", "node1,node2")
	cmd.Stderr = &said
	must(t, cmd.Start())
	must(t, lab.product.Until(t.Context(), time.Minute, "the probe's namespace", func() error {
		if len(leftovers(t)) == 0 {
			return errors.New("there is none")
		}
		return nil
	}))
	must(t, cmd.Process.Signal(syscall.SIGINT))
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("it ends with %v: %s", err, said.String())
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v\n%s", left, said.String())
	}
}
