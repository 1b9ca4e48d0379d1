package deploy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "render deploy/manifests anew")

// helmPath is where go has built helm, as this module has it.
var helmPath = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "helm").Output()
	return strings.TrimSpace(string(out)), err
})

// helm runs helm.
func helm(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	path, err := helmPath()
	if err != nil {
		t.Fatalf("build helm: %v", err)
	}
	cmd := exec.Command(path, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), err
}

func render(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helm(t, append([]string{"template", "flowaudit", "chart", "-n", "flowaudit"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// valueFiles are the ways of installing that are tried.
func valueFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("chart/ci/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	return files
}

// objects reads the documents of a rendering.
func objects(t *testing.T, text string) []unstructured.Unstructured {
	t.Helper()
	var all []unstructured.Unstructured
	for _, document := range strings.Split(text, "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v:\n%s", err, document)
		}
		if len(o.Object) > 0 {
			all = append(all, o)
		}
	}
	return all
}

func TestManifestsAreTheChartRendered(t *testing.T) {
	for _, values := range valueFiles(t) {
		path := filepath.Join("manifests", filepath.Base(values))
		got := render(t, "-f", values)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || string(want) != got {
			t.Errorf("%s is not what the chart renders: run make generate (%v)", path, err)
		}
	}
}

func TestHelmLint(t *testing.T) {
	for _, values := range valueFiles(t) {
		if _, err := helm(t, "lint", "--strict", "chart", "-f", values); err != nil {
			t.Error(err)
		}
	}
}

// TestWrongValues: each is named before anything is installed.
func TestWrongValues(t *testing.T) {
	for value, want := range map[string]string{
		"store.kind=postgres":             "/store/kind",
		"agent.cni=flannel":               "/agent/cni",
		"agent.metricsPort=0":             "/agent/metricsPort",
		"agent.maxUnavailable=0%":         "/agent/maxUnavailable",
		"colector.replicas=1":             "colector",
		"store.size=big":                  "/store/size",
		"collector.retain=long":           "/collector/retain",
		"tls.mode=none":                   "/tls/mode",
		"alerts.alertmanagers[0]=am:9093": "/alerts/alertmanagers/0",
		"collector.replicas=2":            "an embedded store has one collector",
	} {
		if _, err := helm(t, "template", "flowaudit", "chart", "--set", value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that names %s", value, err, want)
		}
	}
}

// podOf is a workload's pod.
func podOf(t *testing.T, all []unstructured.Unstructured, name string) corev1.PodTemplateSpec {
	t.Helper()
	for _, o := range all {
		if o.GetName() != name || !slices.Contains([]string{"DaemonSet", "StatefulSet", "Deployment"}, o.GetKind()) {
			continue
		}
		var d appsv1.Deployment // of the three, the parts that count are the same
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
			t.Fatal(err)
		}
		return d.Spec.Template
	}
	t.Fatalf("there is no %s", name)
	return corev1.PodTemplateSpec{}
}

// TestFlagsExist: as the manual pages have them, which are made of --help.
func TestFlagsExist(t *testing.T) {
	cnis := []string{"tap", "kube-router", "k3s", "calico", "calico-ebpf", "cilium", "weave", "kube-network-policies", "antrea", "ovn-kubernetes", "gke", "aws"}
	var renderings []string
	for _, values := range valueFiles(t) {
		renderings = append(renderings, render(t, "-f", values))
	}
	renderings = append(renderings, render(t, "--set", "tls.mode=secret,evidence.secret=flowaudit-evidence"))
	for _, cni := range cnis {
		renderings = append(renderings, render(t, "--set", "tls.mode=secret,agent.cni="+cni))
	}
	for _, text := range renderings {
		all := objects(t, text)
		for _, program := range []string{"flowaudit-agent", "flowaudit-collector"} {
			page, err := os.ReadFile("../docs/man/" + program + ".8")
			if err != nil {
				t.Fatal(err)
			}
			pod := podOf(t, all, program)
			for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
				for _, arg := range c.Args {
					if name, _, _ := strings.Cut(arg, "="); !documented(page, name) {
						t.Errorf("%s has no flag %s", program, name)
					}
				}
			}
		}
	}
}

// documented tells whether a manual page has a flag.
func documented(page []byte, flag string) bool {
	return strings.Contains(string(page), `\fB`+strings.ReplaceAll(flag, "-", `\-`)+`\fR`)
}

// TestAgentsShowWhatTheCollectorAsksFor: all have one certificate, which names no
// node, so a token of the right audience and account has to.
func TestAgentsShowWhatTheCollectorAsksFor(t *testing.T) {
	for _, values := range valueFiles(t) {
		all := objects(t, render(t, "-f", values))
		agent, collector := podOf(t, all, "flowaudit-agent"), podOf(t, all, "flowaudit-collector")
		asked := make(map[string]string)
		for _, arg := range collector.Spec.Containers[0].Args {
			name, value, _ := strings.Cut(arg, "=")
			asked[name] = value
		}
		if asked["--agent-proof"] != "token" || asked["--agent-account"] != "flowaudit/"+agent.Spec.ServiceAccountName {
			t.Errorf("%s: the collector asks for proof %q of account %q", values, asked["--agent-proof"], asked["--agent-account"])
		}
		i := slices.IndexFunc(agent.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "token" })
		if i < 0 || agent.Spec.Volumes[i].Projected == nil {
			t.Fatalf("%s: the agent has no token", values)
		}
		token := agent.Spec.Volumes[i].Projected.Sources[0].ServiceAccountToken
		if token.Audience != asked["--agent-audience"] {
			t.Errorf("%s: the token is for %q, the collector asks for %q", values, token.Audience, asked["--agent-audience"])
		}
		c := agent.Spec.Containers[0]
		i = slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "token" })
		if i < 0 || !slices.Contains(c.Args, "--token-file="+c.VolumeMounts[i].MountPath+"/"+token.Path) {
			t.Errorf("%s: the agent does not show its token: %v", values, c.Args)
		}
	}
}

// TestReadersAreAskedWhoTheyAre: nobody reads without a token, whatever the values.
func TestReadersAreAskedWhoTheyAre(t *testing.T) {
	for _, values := range valueFiles(t) {
		for set, proof := range map[string]string{"collector.http=true": "token", "readers.oidc.issuer=https://i,readers.oidc.clientID=c": "token,oidc"} {
			args := podOf(t, objects(t, render(t, "-f", values, "--set", set)), "flowaudit-collector").Spec.Containers[0].Args
			if !slices.Contains(args, "--reader-proof="+proof) || !slices.Contains(args, "--reader-right=get pods/log") {
				t.Errorf("%s, %s: %v", values, set, args)
			}
		}
	}
}

func TestTheChartGrantsWhatDeployRBACDoes(t *testing.T) {
	rules := func(text string) map[string]any {
		out := make(map[string]any)
		for _, o := range objects(t, text) {
			if strings.HasSuffix(o.GetKind(), "Role") {
				out[o.GetKind()+" "+o.GetName()] = o.Object["rules"]
			}
		}
		return out
	}
	var want string
	for _, part := range []string{"agent", "collector", "tokens", "alerts"} {
		b, err := os.ReadFile("rbac/" + part + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		want += "\n---\n" + string(b)
	}
	a, errA := json.Marshal(rules(want))
	b, errB := json.Marshal(rules(render(t)))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("deploy/rbac says %s, the chart %s", a, b)
	}
}

// TestFilesOfTheChart: rules are those of deploy/prometheus, and the
// dashboard asks for what docs/metrics.md lists.
func TestFilesOfTheChart(t *testing.T) {
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rules := read("prometheus/rules.yaml")
	if *update {
		if err := os.WriteFile("chart/files/rules.yaml", rules, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(rules, read("chart/files/rules.yaml")) {
		t.Error("chart/files/rules.yaml is not prometheus/rules.yaml: run make generate")
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read("chart/files/grafana/flowaudit.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	metrics := string(read("../docs/metrics.md"))
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			for _, word := range strings.FieldsFunc(q.Expr, func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz_", c) }) {
				if name := strings.TrimSuffix(word, "_bucket"); strings.HasPrefix(word, "flowaudit_") && !strings.Contains(metrics, "| `"+name+"` |") {
					t.Errorf("panel %s asks for %s", p.Title, name)
				}
			}
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %s asks for nothing", p.Title)
		}
	}
}

// TestDashboards: Grafana's sidecar finds each as it is in deploy/grafana, in
// maps that have its label, once they are turned on.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob("grafana/*.json")
	if err != nil || len(files) != 5 {
		t.Fatalf("dashboards %v, %v", files, err)
	}
	given := func(out string) map[string]string {
		all := make(map[string]string)
		for _, text := range strings.Split(out, "\n---\n") {
			var m corev1.ConfigMap
			if err := yaml.Unmarshal([]byte(text), &m); err == nil && m.Kind == "ConfigMap" && m.Labels["grafana_dashboard"] == "1" {
				maps.Copy(all, m.Data)
			}
		}
		return all
	}
	all := given(render(t, "--set", "monitoring.dashboard=true,monitoring.clickhouseDashboards=true"))
	for _, f := range files {
		if want, err := os.ReadFile(f); err != nil || all[filepath.Base(f)] != string(want) {
			t.Errorf("%s is not in the chart (%v)", f, err)
		}
	}
	if none := given(render(t)); len(none) != 0 {
		t.Errorf("%d dashboards, although nobody wants them", len(none))
	}
}

// exceptions are what Pod Security's strictest level refuses of a pod.
func exceptions(t *testing.T, pod corev1.PodSpec) (out []string) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &metav1.ObjectMeta{}, &pod) {
		if !r.Allowed {
			out = append(out, r.ForbiddenReason)
		}
	}
	slices.Sort(out)
	return out
}

// TestPodSecurity: the collector is of the strictest level; of the agent's
// exceptions each is one that it cannot do without.
func TestPodSecurity(t *testing.T) {
	for values, want := range map[string][]string{
		// The node's network, and what reads it; the file's capability, which
		// no_new_privs forbids. A port of the node is one of its network.
		"tls.mode=secret": {"allowPrivilegeEscalation != false", "host namespaces", "hostPort", "unrestricted capabilities"},
		// Cilium's socket is root's, and lies on the node.
		"tls.mode=secret,agent.cni=cilium": {"host namespaces", "hostPort", "restricted volume types", "runAsNonRoot != true", "runAsUser=0", "unrestricted capabilities"},
	} {
		all := objects(t, render(t, "--set", values))
		if got := exceptions(t, podOf(t, all, "flowaudit-collector").Spec); got != nil {
			t.Errorf("%s: the collector needs exceptions: %v", values, got)
		}
		if got := exceptions(t, podOf(t, all, "flowaudit-agent").Spec); !slices.Equal(got, want) {
			t.Errorf("%s: the agent needs the exceptions %q, want %q", values, got, want)
		}
	}
}

// cluster is who talks to the collector, or may not.
const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: flowaudit, labels: {kubernetes.io/metadata.name: flowaudit}}
---
apiVersion: v1
kind: Namespace
metadata: {name: monitoring, labels: {kubernetes.io/metadata.name: monitoring}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kubernetes.io/metadata.name: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {kubernetes.io/metadata.name: kube-system}}
---
apiVersion: v1
kind: Pod
metadata: {name: collector, namespace: flowaudit, labels: {app.kubernetes.io/name: flowaudit, app.kubernetes.io/instance: flowaudit, app.kubernetes.io/component: collector}}
spec: {nodeName: n1, containers: [{name: c, image: c, ports: [{name: grpc, containerPort: 4245}, {name: http, containerPort: 4246}, {name: metrics, containerPort: 9464}]}]}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: grafana, namespace: flowaudit}
spec: {nodeName: n2, containers: [{name: c, image: c}]}
status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: monitoring}
spec: {nodeName: n2, containers: [{name: c, image: c}]}
status: {phase: Running, podIP: 10.1.1.2, podIPs: [{ip: 10.1.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n2, containers: [{name: c, image: c}]}
status: {phase: Running, podIP: 10.1.1.3, podIPs: [{ip: 10.1.1.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: coredns, namespace: kube-system}
spec: {nodeName: n2, containers: [{name: c, image: c}]}
status: {phase: Running, podIP: 10.1.1.4, podIPs: [{ip: 10.1.1.4}]}
`

// TestNetworkPoliciesOfTheChart: our own engine says what they let through,
// with the nodes' network named.
func TestNetworkPoliciesOfTheChart(t *testing.T) {
	dir := t.TempDir()
	text := render(t, "--set", "tls.mode=secret,store.kind=clickhouse,collector.http=true", "--set-json",
		`networkPolicy.reportersFrom=["192.168.7.0/24"]`, "--set-json", `networkPolicy.apiServer={"cidrs":["192.168.7.10/32"],"ports":[6443]}`,
		"--set-json", `networkPolicy.clickhouse={"cidrs":["192.168.9.0/24"],"ports":[9440]}`, "-s", "templates/networkpolicy.yaml")
	const connections = `src,dst,protocol,port,verdict
192.168.7.20,flowaudit/collector,tcp,4245,allow
192.168.8.20,flowaudit/collector,tcp,4245,deny
192.168.7.20,flowaudit/collector,tcp,4246,deny
flowaudit/grafana,flowaudit/collector,tcp,4245,allow
flowaudit/grafana,flowaudit/collector,tcp,4246,allow
flowaudit/grafana,flowaudit/collector,tcp,9464,deny
monitoring/prometheus,flowaudit/collector,tcp,9464,allow
monitoring/prometheus,flowaudit/collector,tcp,4245,deny
shop/web,flowaudit/collector,tcp,4245,deny
shop/web,flowaudit/collector,tcp,9464,deny
shop/web,flowaudit/collector,udp,4245,deny
flowaudit/collector,kube-system/coredns,udp,53,allow
flowaudit/collector,kube-system/coredns,tcp,53,allow
flowaudit/collector,shop/web,udp,53,deny
flowaudit/collector,192.168.7.10,tcp,6443,allow
flowaudit/collector,192.168.7.10,tcp,22,deny
flowaudit/collector,192.168.7.11,tcp,6443,deny
flowaudit/collector,192.168.9.3,tcp,9440,allow
flowaudit/collector,192.168.9.3,tcp,8123,deny
flowaudit/collector,203.0.113.9,tcp,443,deny
flowaudit/grafana,shop/web,tcp,80,allow
`
	for name, content := range map[string]string{"cluster.yaml": cluster, "policies.yaml": text, "c.csv": connections} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", "./cmd/flowaudit", "policy", "eval", "--manifests", filepath.Join(dir, "cluster.yaml"),
		"--manifests", filepath.Join(dir, "policies.yaml"), "--connections", filepath.Join(dir, "c.csv"))
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("flowaudit policy eval: %v\n%s", err, stderr.String())
	}
	if string(out) != connections {
		t.Errorf("the engine says\n%s", out)
	}
	lint := exec.Command("go", "run", "./cmd/flowaudit", "policy", "lint", "--manifests", filepath.Join(dir, "cluster.yaml"), "--manifests", filepath.Join(dir, "policies.yaml"))
	lint.Dir = ".."
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("flowaudit policy lint: %v\n%s", err, out)
	}
}
