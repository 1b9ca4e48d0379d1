package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func snapshot(t *testing.T, text string) *Snapshot {
	t.Helper()
	s, err := Load([]string{"-"}, LoadOptions{Stdin: strings.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPosition(t *testing.T) {
	const text = `# a comment
apiVersion: v1
kind: Namespace
metadata:
  name: shop
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: db
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector:
        matchLabels:
          team: ops
    ports:
    - port: 3306
---
{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}},
  {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "late", "namespace": "shop"},
   "spec": {"podSelector": {},
     "policyTypes": ["Egress"]}}
]}
`
	s := snapshot(t, text)
	for _, c := range []struct {
		kind, namespace, name, field string
		want                         int
	}{
		{"Namespace", "", "shop", "", 2},
		{"Namespace", "", "shop", "metadata.name", 5},
		{"NetworkPolicy", "shop", "db", "", 7},
		{"NetworkPolicy", "shop", "db", "spec.podSelector", 13},
		{"NetworkPolicy", "shop", "db", "spec.podSelector.matchLabels[app.kubernetes.io/name]", 15},
		{"NetworkPolicy", "shop", "db", "spec.ingress[0].from[1]", 19},
		{"NetworkPolicy", "shop", "db", "spec.ingress[0].from[1].namespaceSelector.matchLabels[team]", 21},
		{"NetworkPolicy", "shop", "db", "spec.ingress[0].ports[0].port", 23},
		{"NetworkPolicy", "shop", "db", "spec.ingress[0].ports[0].protocol", 23}, // not there: what holds it
		{"NetworkPolicy", "shop", "db", "spec.ingress[7].from[0]", 16},
		{"NetworkPolicy", "shop", "db", "spec.ingress[0", 16},
		{"Pod", "shop", "web", "", 26},
		{"NetworkPolicy", "shop", "late", "spec.policyTypes[0]", 29},
		{"NetworkPolicy", "shop", "none", "spec", 0},
	} {
		if _, line := s.Position(c.kind, c.namespace, c.name, c.field); line != c.want {
			t.Errorf("%s of %s %s/%s is in line %d, want %d", c.field, c.kind, c.namespace, c.name, line, c.want)
		}
	}
}

func TestProblems(t *testing.T) {
	policy := func(spec string) string {
		return "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n" + spec
	}
	for _, c := range []struct{ name, text, want string }{
		{"broken YAML", "---\nkind: Pod\n---\na: b\n c: [\n", "-:2: Pod: is no Kubernetes object: apiVersion or kind is missing\n-:5: is no YAML: mapping values are not allowed in this context"},
		{"a key given twice", "a: 1\nb: 2\na: 3\n", `-:3: is no YAML: key "a" already set in map`},
		{"a list", "- a\n", "-:1: a list where an object is wanted"},
		{"no name", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop}\n", "-:3: Pod shop/: metadata: metadata.name is missing"},
		{"a misspelt field", policy("  podSelector: {}\n  ingress:\n  - form: []\n"), "-:8: NetworkPolicy shop/p: spec.ingress[0].form: unknown field"},
		{"a field in capitals", policy("  podselector: {}\n"), "-:6: NetworkPolicy shop/p: spec.podselector: unknown field"},
		{"a text for a list", policy("  podSelector: {}\n  ingress:\n  - {}\n  - from: all\n"), "-:9: NetworkPolicy shop/p: spec.ingress[1].from: a string where a list is wanted"},
		{"a number for a label", policy("  podSelector:\n    matchLabels:\n      a: b\n      tier: 1\n"), "-:9: NetworkPolicy shop/p: spec.podSelector.matchLabels.tier: a number where a string is wanted"},
		{"an old version", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n", "-:1: NetworkPolicy p: apiVersion: is not served any more: write networking.k8s.io/v1"},
		{"given twice", policy("  podSelector: {}\n") + policy("  podSelector: {}\n"), "-:8: NetworkPolicy shop/p: is given twice, first in -:2"},
		{"an item of a List", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {nam: x}\n", "-:6: Namespace: metadata: metadata.name is missing"},
		{"kinds of no concern", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n", ""},
		{"a pod's newer field", "apiVersion: v1\nkind: Pod\nmetadata: {name: c}\nspec: {fieldOfTomorrow: 1}\n", ""},
		{"a list of one kind", `{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}}, {"metadata": {}}]}`, "-:1: Pod: metadata: metadata.name is missing"},
		{"an empty list", "apiVersion: v1\nkind: List\nitems: []\n", ""},
		{"comments", "# only\n---\n# these\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, p := range snapshot(t, c.text).Problems {
				got = append(got, p.Error())
			}
			if strings.Join(got, "\n") != c.want {
				t.Errorf("problems\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(name string) string { return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + "}}\n" }
	write("a.yaml", pod("a"))
	write("sub/b.yml", pod("b"))
	write("sub/c.json", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}}`)
	write(".hidden/d.yaml", pod("d"))
	write("notes.txt", pod("e"))
	names := func(paths ...string) string {
		t.Helper()
		var seen []int64
		s, err := Load(paths, LoadOptions{Stdin: strings.NewReader(pod("in")), Progress: func(done, _ int64) { seen = append(seen, done) }})
		if err != nil {
			return err.Error()
		}
		if !slices.IsSorted(seen) || len(seen) == 0 {
			t.Errorf("progress went %v", seen)
		}
		var out []string
		for _, p := range s.Pods {
			out = append(out, p.Namespace+"/"+p.Name)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		want  string
		paths []string
	}{
		{"default/a default/b default/c", []string{dir}},
		{"default/a default/b default/c", []string{dir, dir + "/sub/../a.yaml", dir + "/sub"}}, // each once
		{"default/in default/e", []string{"-", filepath.Join(dir, "notes.txt")}},
		{"read manifests: stat " + dir + "/none: no such file or directory", []string{dir + "/none"}},
	} {
		if got := names(c.paths...); got != c.want {
			t.Errorf("%v: %s, want %s", c.paths, got, c.want)
		}
	}
}

func TestWhatManifestsLeaveOut(t *testing.T) {
	workload := func(kind, version, name, template string) string {
		return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {name: %s, namespace: shop}, spec: {selector: {matchLabels: {app: %[3]s}}, %s}}\n---\n", version, kind, name, template)
	}
	const template = "template: {metadata: {labels: {app: %s}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}}"
	text := workload("Deployment", "apps/v1", "web", fmt.Sprintf(template, "web")) +
		workload("StatefulSet", "apps/v1", "db", fmt.Sprintf(template, "db")) +
		"{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly, namespace: ops}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: nightly}}}}}}}\n---\n" +
		"{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}}\n---\n" +
		"{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: ops}}}\n---\n" +
		"{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: l7, namespace: shop}}\n"
	s := snapshot(t, text)
	var pods []string
	for _, p := range s.Pods {
		pods = append(pods, fmt.Sprintf("%s/%s %s %d", p.Namespace, p.Name, p.Labels["app"], len(p.Spec.Containers)))
	}
	if got, want := strings.Join(pods, ", "), "shop/db-0 db 0, shop/web web 1, ops/nightly nightly 0"; got != want {
		t.Errorf("pods %s, want %s", got, want)
	}
	labels := make(map[string]string)
	for _, n := range s.Namespaces {
		labels[n.Name] = fmt.Sprint(n.Labels)
	}
	if labels["shop"] != "map[kubernetes.io/metadata.name:shop]" || labels["ops"] != "map[kubernetes.io/metadata.name:ops team:ops]" {
		t.Errorf("namespaces %v", labels)
	}
	if fmt.Sprint(s.Assumed) != "[shop]" || len(s.OtherPolicies) != 1 || s.OtherPolicies[0].String() != "CiliumNetworkPolicy shop/l7" || s.OtherPolicies[0].Group != "cilium.io" {
		t.Errorf("assumed %v, other policies %v", s.Assumed, s.OtherPolicies)
	}
	if file, line := s.Position("Pod", "shop", "web", "spec"); file != "-" || line != 1 {
		t.Errorf("the pod of a template is at %s:%d", file, line)
	}
}

// FuzzLoad: no bytes make it panic, and every line that it names is there.
func FuzzLoad(f *testing.F) {
	f.Add("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {matchLabels: {a: 1}}}\n")
	f.Add("a: &x [*x]\n---\n- {}\n---\napiVersion: v1\nkind: List\nitems: [{kind: Pod}, 3]\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Load([]string{"-"}, LoadOptions{Stdin: strings.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		lines := 1 // as YAML counts them
		for _, r := range text {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
				lines++
			}
		}
		for _, p := range s.Problems {
			if p.Line < 1 || p.Line > lines {
				t.Errorf("%v names line %d of %d", p, p.Line, lines)
			}
		}
		for _, p := range s.Policies {
			if _, line := s.Position("NetworkPolicy", p.Namespace, p.Name, "spec.ingress[0].from[0]"); line > lines {
				t.Errorf("line %d of %d", line, lines)
			}
		}
	})
}
