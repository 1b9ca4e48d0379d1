// Package installed_test installs flowaudit as its users do, in a cluster of its own.
package installed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/cluster/product"
	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

const deployDir = "../../../deploy"

// release is an installation by Helm, from images of this source.
type release struct {
	*cluster.Cluster
	enforcer  *enforce.Enforcer
	t         *testing.T
	helm      string
	bin       string // of flowaudit's programs
	ca, token string // files of a reader
	nodes     []*cluster.Node
}

const installation = `apiVersion: v1
kind: Namespace
metadata: {name: flowaudit}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: flowaudit}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: DIR}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [NODE-B]}]}]}}
---
apiVersion: v1
kind: Namespace
metadata: {name: installed}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: installed}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      nodeSelector: {kubernetes.io/hostname: NODE-A}
      terminationGracePeriodSeconds: 1
      containers: [{name: box, image: "localhost/flowaudit/box:1", args: [serve, "8080"]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: installed}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}
`

// TestInstalledByHelm: the chart, with images in containerd, on real kubelets. A
// refusal is told and alerts; nothing is missed by upgrade, reboot and rollback
// but what Coverage shows; and nothing stays when it is removed.
func TestInstalledByHelm(t *testing.T) {
	r := newRelease(t)
	must(t, r.run("install", "flowaudit", filepath.Join(deployDir, "chart"), "-n", "flowaudit", "--wait", "--timeout", "3m", "-f", r.values()))

	r.reader()
	pods, err := r.Running(t.Context(), "installed", "app=server", 1)
	must(t, err)
	must(t, r.enforcer.Sync(t.Context()))
	began := time.Now()
	k := &knocker{client: r.client(), server: pods[0]}
	k.knock(t)
	t.Run("the init container turns accounting on", r.accounted)
	t.Run("a sidecar reports", r.sidecar)
	t.Run("a refusal is told", func(t *testing.T) { r.told(t, k, began) })
	t.Run("a refusal alerts", r.alerted)

	restarted := r.during(k, func() error {
		return r.run("upgrade", "flowaudit", filepath.Join(deployDir, "chart"), "-n", "flowaudit", "--wait", "--timeout", "3m", "-f", r.values(),
			"--set", "agent.logLevel=debug", "--set", "collector.logLevel=debug")
	})
	t.Run("an upgrade misses nothing that is not told", func(t *testing.T) { r.complete(t, k, began, restarted) })

	cut := r.during(k, func() error { return r.Reboot(t.Context(), r.nodes[1]) }) // the collector's
	t.Run("a reboot of the collector's node misses nothing", func(t *testing.T) { r.complete(t, k, began, restarted, cut) })

	back := r.during(k, func() error {
		return r.run("rollback", "flowaudit", "1", "-n", "flowaudit", "--wait", "--timeout", "3m")
	})
	t.Run("a rollback misses nothing that is not told", func(t *testing.T) { r.complete(t, k, began, restarted, cut, back) })

	must(t, r.run("uninstall", "flowaudit", "-n", "flowaudit", "--wait", "--timeout", "2m"))
	t.Run("nothing stays", r.gone)
}

// newRelease prepares two machines that have the images, and what Helm needs.
func newRelease(t *testing.T) *release {
	t.Helper()
	dir := t.TempDir()
	images := exec.CommandContext(t.Context(), "go", "run", "./release", "-version", "test", "-out", dir, "-architectures", "amd64", "images")
	images.Dir = deployDir
	output(t, images)
	tool := exec.CommandContext(t.Context(), "go", "tool", "-n", "helm")
	tool.Dir = deployDir
	r := &release{t: t, helm: strings.TrimSpace(output(t, tool))}

	var err error
	r.bin, err = product.Build(t.Context())
	must(t, err)
	r.start()
	nodes, err := r.AddMachines(t.Context(), 2, filepath.Join(dir, "flowaudit-agent.tar"), filepath.Join(dir, "flowaudit-collector.tar"))
	must(t, err)
	r.nodes = nodes
	for _, n := range nodes {
		must(t, r.enforcer.Add(t.Context(), n.Name, n))
		_, err := r.Kubectl(t.Context(), "", "label", "node", n.Name, "flowaudit.test/installed=yes")
		must(t, err)
	}
	const user = 65532
	dirs := []string{r.volume()}
	for _, n := range nodes {
		dirs = append(dirs, filepath.Join(r.Dir, n.Name, "kubelet", "flowaudit")) // which is stateDir there
	}
	for _, dir := range dirs {
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.Chown(dir, user, user))
	}
	must(t, r.Apply(t.Context(), strings.NewReplacer("NODE-A", nodes[0].Name, "NODE-B", nodes[1].Name, "DIR", r.volume()).Replace(installation)))
	must(t, r.NamespaceReady(t.Context(), "flowaudit"))
	must(t, r.NamespaceReady(t.Context(), "installed"))
	return r
}

// start starts a cluster, and who enforces its policies.
func (r *release) start() {
	r.t.Helper()
	netlab.NeedRoot(r.t)
	o := cluster.DefaultOptions()
	o.Progress = os.Stderr
	var err error
	r.Cluster, err = cluster.Start(r.t.Context(), o)
	must(r.t, err)
	ctx, stop := context.WithCancel(context.Background())
	r.t.Cleanup(func() {
		stop()
		if err := r.Close(); err != nil {
			r.t.Error(err)
		}
	})
	nodes := make(map[string]enforce.Node)
	for _, n := range r.Nodes {
		nodes[n.Name] = n
	}
	r.enforcer, err = enforce.Start(ctx, r.Client, nodes, enforce.DefaultOptions())
	must(r.t, err)
}

// client is a pod on a node of its own.
func (r *release) client() *cluster.Pod {
	r.t.Helper()
	_, err := r.Client.CoreV1().Pods("installed").Create(r.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "client", Namespace: "installed", Labels: map[string]string{"app": "client"}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "client", Image: "test/client:1"}}},
	}, metav1.CreateOptions{})
	must(r.t, err)
	pods, err := r.Pods(r.t.Context(), "installed", "app=client", 1)
	must(r.t, err)
	return pods[0]
}

// stateDir is a directory of each machine that outlasts a reboot.
const stateDir = "/var/lib/kubelet/flowaudit"

// volume outlasts one, too: machines share this one's temporary files.
func (r *release) volume() string { return filepath.Join(r.Dir, "volume") }

func (r *release) values() string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "values.yaml")
	must(r.t, os.WriteFile(path, fmt.Appendf(nil, `image: {tag: test, pullPolicy: Never}
agent:
  cni: kube-router
  accounting: true
  args: [--window=2s]
  nodeSelector: {flowaudit.test/installed: "yes"}
  stateHostPath: %s
  maxUnavailable: 1
collector: {nodeSelector: {kubernetes.io/hostname: %s}}
store: {size: 1Gi, retainSize: 900MiB, storageClassName: local, memory: 500MB}
`, stateDir, r.nodes[1].Name), 0o600))
	return path
}

// run runs helm beside the API server.
func (r *release) run(args ...string) error {
	ctx := r.t.Context()
	cmd := r.Plane().Command(ctx, r.helm, append(args, "--kubeconfig", r.Admin())...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	pods, _ := r.Kubectl(ctx, "", "-n", "flowaudit", "describe", "pods") // the first error is told in any case
	logs, _ := r.Kubectl(ctx, "", "-n", "flowaudit", "logs", "--prefix", "--tail=30", "-l", "app.kubernetes.io/name=flowaudit")
	return fmt.Errorf("helm %s: %w\n%s\n%s\n%s", args[0], err, out, pods, logs)
}

// ask runs flowaudit as the chart's notes say: through kubectl's port-forward,
// with a token.
func (r *release) ask(ctx context.Context, args ...string) (string, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	forward := r.KubectlCommand(ctx, "-n", "flowaudit", "port-forward", "svc/flowaudit-collector", ":4245")
	said, err := forward.StdoutPipe()
	if err == nil {
		err = forward.Start()
	}
	if err != nil {
		return "", fmt.Errorf("forward a port: %w", err)
	}
	defer func() { stop(); _ = forward.Wait() }() // it is killed
	var port int
	if _, err := fmt.Fscanf(said, "Forwarding from 127.0.0.1:%d -> 4245", &port); err != nil {
		return "", fmt.Errorf("forward a port: %w", err)
	}
	cmd := r.Plane().Command(ctx, filepath.Join(r.bin, "flowaudit"),
		append(args, "--server", fmt.Sprintf("localhost:%d", port), "--tls-ca", r.ca, "--token-file", r.token)...)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("flowaudit %s: %w: %s", args[0], err, problem.String())
	}
	return string(out), nil
}

// reader gets what a reader of everything shows, and the collector's authority.
func (r *release) reader() {
	r.t.Helper()
	kubectl := func(args ...string) string {
		r.t.Helper()
		out, err := r.Kubectl(r.t.Context(), "", append([]string{"-n", "flowaudit"}, args...)...)
		must(r.t, err)
		return out
	}
	kubectl("create", "serviceaccount", "reader")
	kubectl("create", "clusterrole", "reader", "--verb=get", "--resource=pods/log")
	kubectl("create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=flowaudit:reader")
	dir := r.t.TempDir()
	r.ca, r.token = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	ca := kubectl("get", "secret", "flowaudit-collector-tls", "-o", `go-template={{index .data "ca.crt" | base64decode}}`)
	must(r.t, os.WriteFile(r.ca, []byte(ca), 0o600))
	must(r.t, os.WriteFile(r.token, []byte(kubectl("create", "token", "reader", "--audience=flowaudit-reader")), 0o600))
}

// told waits until the first refusal is, with both ends and the policy.
func (r *release) told(t *testing.T, k *knocker, began time.Time) {
	must(t, eventually(t.Context(), "the refusal", func() error {
		flows, err := r.refused(t.Context(), began)
		if err != nil {
			return err
		}
		for _, f := range flows {
			if f.Source.Pod == "client" && f.Destination.Pod == k.server.Name && f.Destination.Node == r.nodes[0].Name &&
				f.Destination.Workload.Name == "server" && len(f.Policies) == 1 && f.Policies[0].Name == "server" && f.Key.Port == firstKnock {
				return nil
			}
		}
		return fmt.Errorf("%d flows: %+v", len(flows), flows)
	}))
}

// refused are the refusals in the namespace.
func (r *release) refused(ctx context.Context, since time.Time) (flows []flow.Flow, err error) {
	out, err := r.ask(ctx, "observe", "--all", "-n", "installed", "--verdict", "denied", "-o", "json", "--since", since.Format(time.RFC3339Nano))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		var f flow.Flow
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			return nil, err
		}
		flows = append(flows, f)
	}
	return flows, nil
}

// accounted: by the chart's init container, in each node's own network.
func (r *release) accounted(t *testing.T) {
	for _, n := range r.nodes {
		must(t, n.Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_acct")
			if err == nil && strings.TrimSpace(string(b)) != "1" {
				err = fmt.Errorf("nf_conntrack_acct of %s is %s", n.Name, b)
			}
			return err
		}))
	}
}

// sidecar runs a pod with the containers and volumes of docs/install.md.
func (r *release) sidecar(t *testing.T) {
	text, err := os.ReadFile("../../../docs/install.md")
	must(t, err)
	_, section, _ := strings.Cut(string(text), "\n## In a pod\n")
	_, block, _ := strings.Cut(section, "```yaml\n")
	block, _, _ = strings.Cut(block, "```\n")
	containers, volumes, ok := strings.Cut(block, "\nvolumes:\n")
	if !ok {
		t.Fatalf("the page has %s", block)
	}
	image := strings.NewReplacer("flowaudit-agent:devel", "flowaudit-agent:test").Replace(containers)
	spec := "nodeSelector: {kubernetes.io/hostname: " + r.nodes[0].Name + "}\nterminationGracePeriodSeconds: 1\n" +
		image + "\n  - {name: box, image: \"localhost/flowaudit/box:1\", args: [pause]}\nvolumes:\n" + volumes
	ca, err := os.ReadFile(r.ca)
	must(t, err)
	_, err = r.Client.CoreV1().ConfigMaps("installed").Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "flowaudit-ca"}, Data: map[string]string{"ca.crt": string(ca)},
	}, metav1.CreateOptions{})
	must(t, err)
	must(t, r.Apply(t.Context(), "apiVersion: v1\nkind: Pod\nmetadata: {name: guest, namespace: installed, labels: {app: guest}}\nspec:\n  "+
		strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ")+"\n"))
	must(t, eventually(t.Context(), "the sidecar to report", func() error {
		out, err := r.ask(t.Context(), "query", "nodes")
		if err == nil && !strings.Contains(out, "installed/guest") {
			said, _ := r.Kubectl(t.Context(), "", "-n", "installed", "logs", "guest", "-c", "flowaudit-agent", "--tail=10") // only to explain
			err = fmt.Errorf("%s\n%s", out, said)
		}
		return err
	}))
}

func (r *release) alerted(t *testing.T) {
	must(t, eventually(t.Context(), "the alert", func() error {
		out, err := r.ask(t.Context(), "alerts", "list")
		if err == nil && !strings.Contains(out, "installed/client") {
			err = errors.New(out)
		}
		return err
	}))
}

// knocker tries ports that the policy refuses, one after the other.
type knocker struct {
	client *cluster.Pod
	server *corev1.Pod
	at     []time.Time // when each was tried, from firstKnock
}

const firstKnock = 9000

func (k *knocker) knock(t *testing.T) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(k.server.Status.PodIP), uint16(firstKnock+len(k.at)))
	k.at = append(k.at, time.Now())
	must(t, traffic.Knock(t.Context(), k.client, "tcp", to.String()))
}

// span is a time.
type span struct{ from, to time.Time }

func (s span) holds(at time.Time) bool {
	const slack = time.Second // a refusal is known when no answer came
	return !at.Before(s.from.Add(-slack)) && !at.After(s.to.Add(slack))
}

// during knocks until something is done, and once after that.
func (r *release) during(k *knocker, do func() error) span {
	r.t.Helper()
	s, done := span{from: time.Now()}, make(chan error, 1)
	go func() { done <- do() }()
	for {
		k.knock(r.t)
		time.Sleep(5 * time.Millisecond) // there are ports for minutes then
		select {
		case err := <-done:
			must(r.t, err)
			s.to = time.Now()
			k.knock(r.t)
			return s
		default:
		}
	}
}

// complete waits until every refusal is told, or lies in a gap of the server's
// node that is told; and no gap is but when something was done to the agents.
func (r *release) complete(t *testing.T, k *knocker, began time.Time, done ...span) {
	must(t, eventually(t.Context(), "what was refused", func() error {
		flows, err := r.refused(t.Context(), began)
		if err != nil {
			return err
		}
		gaps, err := r.gaps(t.Context(), began)
		if err != nil {
			return err
		}
		times := make(map[uint16]uint64)
		for i := range flows {
			times[flows[i].Key.Port] += flows[i].Connections
		}
		missed := 0
		for i, at := range k.at {
			switch n := times[uint16(firstKnock+i)]; {
			case n > 1:
				return fmt.Errorf("port %d was refused once, and %d times are told", firstKnock+i, n)
			case n == 0 && !within(at, gaps):
				return fmt.Errorf("the refusal of %s to port %d is neither told nor in a gap: %v", at, firstKnock+i, gaps)
			case n == 0:
				missed++
			}
		}
		for _, g := range gaps {
			if !within(g.from, done) || !within(g.to, done) {
				return fmt.Errorf("a gap from %s to %s, when nothing was done to an agent", g.from, g.to)
			}
		}
		t.Logf("%d refusals, %d of them in gaps that are told: %v", len(k.at), missed, gaps)
		return nil
	}))
}

func within(at time.Time, all []span) bool {
	for _, s := range all {
		if s.holds(at) {
			return true
		}
	}
	return false
}

// gaps are those of the server's node.
func (r *release) gaps(ctx context.Context, since time.Time) (all []span, err error) {
	out, err := r.ask(ctx, "query", "coverage-gaps", "--arg", "since=1h", "-o", "json")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		var g struct {
			Node      string
			StartTime time.Time `json:"start_time"`
			EndTime   time.Time `json:"end_time"`
		}
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			return nil, fmt.Errorf("read %s: %w", line, err)
		}
		if g.Node == r.nodes[0].Name && g.EndTime.After(since) {
			all = append(all, span{g.StartTime, g.EndTime})
		}
	}
	return all, nil
}

// gone checks that neither the cluster nor the nodes keep anything.
func (r *release) gone(t *testing.T) {
	must(t, eventually(t.Context(), "everything to be gone", func() error {
		out, err := r.Kubectl(t.Context(), "", "get", "all,secrets,configmaps,networkpolicies,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings",
			"-A", "-l", "app.kubernetes.io/instance=flowaudit", "-o", "name")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("there is %s", out)
		}
		return err
	}))
	for _, n := range r.nodes {
		out, err := n.Command(t.Context(), "nft", "list", "tables").Output()
		must(t, err)
		if strings.Contains(string(out), "flowaudit-tap") {
			t.Errorf("%s has still %s", n.Name, out)
		}
	}
}

// patience is how long flowaudit may take to have the answer.
const patience = time.Minute

// eventually tries something until it works.
func eventually(ctx context.Context, what string, try func() error) error {
	deadline := time.After(patience)
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-deadline:
			return fmt.Errorf("wait for %s: %w", what, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output is what a program prints.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, said.String())
	}
	return string(out)
}
