package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// apiServer answers lists as an API server does, a page at a time.
type apiServer struct {
	lists     map[string][]any // by resource
	kinds     map[string]string
	forbidden map[string]bool
	code      int  // for everything, if not 0
	hangs     bool // nothing is answered
}

const fewObjects = 2 // on a page

// fleetServer has the objects of the fleet's manifests.
func fleetServer(t *testing.T) *apiServer {
	t.Helper()
	o := loadFleet(t)
	s := &apiServer{lists: make(map[string][]any), forbidden: make(map[string]bool), kinds: map[string]string{
		"namespaces": "v1 NamespaceList", "nodes": "v1 NodeList", "pods": "v1 PodList", "services": "v1 ServiceList",
		"networkpolicies": "networking.k8s.io/v1 NetworkPolicyList", "daemonsets": "apps/v1 DaemonSetList",
		"replicasets": "meta.k8s.io/v1 PartialObjectMetadataList", "jobs": "meta.k8s.io/v1 PartialObjectMetadataList",
		"ciliumnetworkpolicies": "cilium.io/v2 CiliumNetworkPolicyList",
	}}
	serve(s, "namespaces", o.Namespaces)
	serve(s, "nodes", o.Nodes)
	serve(s, "pods", o.Pods)
	serve(s, "services", o.Services)
	serve(s, "networkpolicies", o.Policies)
	for _, r := range o.ReplicaSets {
		s.lists["replicasets"] = append(s.lists["replicasets"], map[string]any{"metadata": r.ObjectMeta})
	}
	return s
}

func serve[T any](s *apiServer, resource string, objects []T) {
	for _, o := range objects {
		s.lists[resource] = append(s.lists[resource], o)
	}
}

func loadFleet(t *testing.T) *kube.Snapshot {
	t.Helper()
	o, err := kube.Load([]string{fleet}, kube.LoadOptions{})
	if err != nil || len(o.Problems) > 0 {
		t.Fatal(err, o.Problems)
	}
	return o
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.hangs {
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", "application/json")
	resource := filepath.Base(r.URL.Path)
	refuse := func(code int, reason metav1.StatusReason, message string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message})
	}
	switch {
	case s.code == http.StatusUnauthorized:
		refuse(s.code, metav1.StatusReasonUnauthorized, "Unauthorized")
	case s.forbidden[resource]:
		refuse(http.StatusForbidden, metav1.StatusReasonForbidden, fmt.Sprintf(`%s is forbidden: User "me" cannot list resource %q`, resource, resource))
	case resource == "apis":
		groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		if len(s.lists["ciliumnetworkpolicies"]) > 0 {
			v2 := metav1.GroupVersionForDiscovery{GroupVersion: "cilium.io/v2", Version: "v2"}
			groups.Groups = append(groups.Groups, metav1.APIGroup{Name: "cilium.io", PreferredVersion: v2, Versions: []metav1.GroupVersionForDiscovery{v2}})
		}
		_ = json.NewEncoder(w).Encode(groups)
	case s.kinds[resource] == "":
		refuse(http.StatusNotFound, metav1.StatusReasonNotFound, "not found")
	default:
		s.list(w, r, resource)
	}
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, resource string) {
	items := s.lists[resource]
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	page, next := items[from:], ""
	if r.URL.Query().Get("limit") != "" && len(page) > fewObjects {
		page, next = page[:fewObjects], strconv.Itoa(from+fewObjects)
	}
	if page == nil {
		page = []any{}
	}
	version, kind, _ := strings.Cut(s.kinds[resource], " ")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kind, "apiVersion": version, "metadata": map[string]string{"resourceVersion": "1", "continue": next}, "items": page,
	})
}

// kubeconfig starts the server and writes a file with a context that means it.
func (s *apiServer) kubeconfig(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return writeKubeconfig(t, server.URL)
}

func writeKubeconfig(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: test\n" +
		"clusters: [{name: test, cluster: {server: '" + url + "'}}]\n" +
		"users: [{name: me, user: {token: x}}]\n" +
		"contexts: [{name: test, context: {cluster: test, user: me}}, {name: old, context: {cluster: gone, user: me}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Objects implements the Query service.
func (c *collector) Objects(req *flowauditv1.ObjectsRequest, stream flowauditv1.Query_ObjectsServer) error {
	for _, o := range c.objects[req.GetAt()] {
		if err := stream.Send(&flowauditv1.ObjectsResponse{Objects: [][]byte{o}}); err != nil {
			return err
		}
	}
	if c.err != nil {
		return c.err
	}
	return stream.Send(&flowauditv1.ObjectsResponse{Limits: c.limits})
}

// fleetCollector knows the fleet, as it is now.
func fleetCollector(t *testing.T) *collector {
	t.Helper()
	s := fleetServer(t)
	c := &collector{objects: make(map[int64][][]byte)}
	for resource, list := range s.lists {
		version, kind, _ := strings.Cut(strings.TrimSuffix(s.kinds[resource], "List"), " ")
		if resource == "replicasets" {
			version, kind = "apps/v1", "ReplicaSet"
		}
		for _, o := range list {
			text, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			object := make(map[string]any)
			if err := json.Unmarshal(text, &object); err != nil {
				t.Fatal(err)
			}
			object["apiVersion"], object["kind"] = version, kind
			if text, err = json.Marshal(object); err != nil {
				t.Fatal(err)
			}
			c.objects[0] = append(c.objects[0], text)
		}
	}
	return c
}

// withoutFiles cuts off where policies are written: online they are in no file.
func withoutFiles(s string) string {
	s, _, _ = strings.Cut(s, "\nwritten in\n")
	return s
}

// Online the answer is the one that files with the same objects give.
func TestPolicyOnline(t *testing.T) {
	connections := filepath.Join(t.TempDir(), "c.csv")
	if err := os.WriteFile(connections, []byte("src,dst,protocol,port\nops/prom-0,shop/db,tcp,3306\n10.244.1.1,shop/db,tcp,3306\n192.168.0.1,10.244.1.1,tcp,9999\nshop/none,shop/db,tcp,1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kubeconfig := fleetServer(t).kubeconfig(t)
	for _, args := range [][]string{
		{"eval", "--connections", connections},
		{"explain", "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306"},
		{"explain", "--from", "10.244.3.1", "--to", "192.0.2.1", "--port", "53", "--protocol", "udp"},
		{"matrix", "--all"},
		{"matrix", "-o", "json"},
	} {
		files := flowaudit(t, nil, nil, append(append([]string{"policy"}, args...), "--manifests", fleet)...)
		files.stdout = withoutFiles(files.stdout)
		if files.stdout == "" {
			t.Fatalf("%v: %s", args, files.stderr)
		}
		for name, got := range map[string]result{
			"by --kubeconfig":     flowaudit(t, nil, nil, append(append([]string{"policy"}, args...), "--kubeconfig", kubeconfig)...),
			"by --context":        flowaudit(t, nil, map[string]string{"KUBECONFIG": "none:" + kubeconfig}, append(append([]string{"policy"}, args...), "--context", "test")...),
			"by $KUBECONFIG":      flowaudit(t, nil, map[string]string{"KUBECONFIG": kubeconfig}, append([]string{"policy"}, args...)...),
			"by the collector":    flowaudit(t, fleetCollector(t), nil, append([]string{"policy"}, args...)...),
			"by --server":         flowaudit(t, nil, map[string]string{"KUBECONFIG": kubeconfig}, append(append([]string{"policy"}, args...), "--server", fleetCollector(t).listen(t))...),
			"by ~/.kube/config":   flowaudit(t, nil, map[string]string{"HOME": home(t, kubeconfig)}, append([]string{"policy"}, args...)...),
			"the server is meant": flowaudit(t, nil, map[string]string{"FLOWAUDIT_SERVER": "unix:/nonexistent"}, append(append([]string{"policy"}, args...), "--kubeconfig", kubeconfig)...),
		} {
			if got != files {
				t.Errorf("%v %s: exit code %d\n%s%s\nwant %d\n%s%s", args, name, got.code, got.stdout, got.stderr, files.code, files.stdout, files.stderr)
			}
		}
	}
}

// home is a home with a kubeconfig where kubectl looks for it.
func home(t *testing.T, kubeconfig string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(kubeconfig)
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, ".kube"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ".kube", "config"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// On a cluster a finding is named by its object.
func TestLintOnline(t *testing.T) {
	got := flowaudit(t, nil, nil, "policy", "lint", "--kubeconfig", fleetServer(t).kubeconfig(t))
	golden(t, "policy/lint-online.txt", got.stdout+got.stderr)
}

// Files are compared with the cluster that they would be applied to, and the
// past with the present.
func TestDiffOnline(t *testing.T) {
	const after = "testdata/policy/after"
	kubeconfig := fleetServer(t).kubeconfig(t)
	for name, args := range map[string][]string{
		"after":  {"--after", after},
		"before": {"--before", after, "-o", "csv"},
		"whole":  {"--after", after, "--whole", "--exit-code"},
		"both":   {"--before", after, "--after", after},
	} {
		got := flowaudit(t, nil, nil, append([]string{"policy", "diff", "--kubeconfig", kubeconfig}, args...)...)
		golden(t, "policy/diff-online-"+name+".txt", fmt.Sprintf("%s%sexit code %d\n", got.stdout, got.stderr, got.code))
	}
	c := fleetCollector(t)
	yesterday := here.Add(-24 * time.Hour).UnixMilli()
	for _, o := range c.objects[0] {
		if !strings.Contains(string(o), `"NetworkPolicy"`) { // there was none
			c.objects[yesterday] = append(c.objects[yesterday], o)
		}
	}
	got := flowaudit(t, c, nil, "policy", "diff", "--at", "24h")
	golden(t, "policy/diff-online-at.txt", fmt.Sprintf("%s%sexit code %d\n", got.stdout, got.stderr, got.code))
	none := flowaudit(t, c, nil, "policy", "explain", "--at", "24h", "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306")
	if !strings.Contains(none.stdout, "tcp port 3306: allowed") || none.code != exitOK {
		t.Errorf("without policies: %+v", none)
	}
}

// Policies of other kinds are named where they select an end.
func TestOtherPoliciesOnline(t *testing.T) {
	s := fleetServer(t)
	cilium := func(namespace, name, spec string) any {
		return map[string]any{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": map[string]string{"namespace": namespace, "name": name}, "spec": json.RawMessage(spec)}
	}
	s.lists["ciliumnetworkpolicies"] = []any{
		cilium("shop", "l7", `{"endpointSelector": {}}`), cilium("ops", "l7", `{"endpointSelector": {"matchLabels": {"app": "none"}}}`), cilium("ops", "new", `{}`),
	}
	kubeconfig := s.kubeconfig(t)
	got := flowaudit(t, nil, nil, "policy", "explain", "--kubeconfig", kubeconfig, "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306")
	const want = "\nnot judged, and may decide otherwise\n" +
		"  CiliumNetworkPolicy ops/new may select ops/prom-0: a rule has neither endpointSelector nor nodeSelector\n" +
		"  CiliumNetworkPolicy shop/l7 selects shop/db\n"
	if !strings.HasSuffix(got.stdout, want) || got.stderr != "" || got.code != exitOK {
		t.Errorf("exit code %d\n%s%s\nwant at the end\n%s", got.code, got.stdout, got.stderr, want)
	}
	got = flowaudit(t, nil, nil, "policy", "matrix", "--kubeconfig", kubeconfig)
	if got.stderr != "warning: not taken into account: CiliumNetworkPolicy shop/l7, CiliumNetworkPolicy ops/l7, CiliumNetworkPolicy ops/new\n" {
		t.Errorf("warned %q", got.stderr)
	}
}

// Who cannot be asked is named, with what to do about it.
func TestOnlineFaults(t *testing.T) {
	explain := func(t *testing.T, s *apiServer, args ...string) result {
		t.Helper()
		return flowaudit(t, nil, nil, append([]string{"policy", "explain", "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306", "--kubeconfig", s.kubeconfig(t)}, args...)...)
	}
	t.Run("no permission for pods", func(t *testing.T) {
		s := fleetServer(t)
		s.forbidden["pods"] = true
		got := explain(t, s)
		if got.code != exitError || !strings.HasPrefix(got.stderr, `flowaudit: list pods: pods is forbidden: User "me" cannot list resource "pods"`) || !strings.Contains(got.stderr, "deploy/rbac/reader.yaml has what is needed") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no permission for nodes", func(t *testing.T) {
		s := fleetServer(t)
		s.forbidden["nodes"], s.forbidden["replicasets"] = true, true
		got := explain(t, s)
		for _, want := range []string{"warning: no permission to list nodes: an address of a node counts as outside\n", "warning: no permission to list replicasets.apps: pods are named by"} {
			if got.code != exitOK || !strings.Contains(got.stderr, want) {
				t.Errorf("%+v, want %q", got, want)
			}
		}
	})
	t.Run("not known to the server", func(t *testing.T) {
		s := fleetServer(t)
		s.code = http.StatusUnauthorized
		if got := explain(t, s); got.code != exitError || !strings.Contains(got.stderr, "does not accept the credentials of the current context of ") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a context that is not there", func(t *testing.T) {
		if got := explain(t, fleetServer(t), "--context", "prod"); got.code != exitError || !strings.HasSuffix(got.stderr, `it has no context "prod", but old, test`+"\n") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a context of a cluster that is not there", func(t *testing.T) {
		if got := explain(t, fleetServer(t), "--context", "old"); got.code != exitError || !strings.Contains(got.stderr, "flowaudit: read kubeconfig ") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("not in a pod", func(t *testing.T) {
		t.Setenv("KUBERNETES_SERVICE_HOST", "")
		if got := flowaudit(t, nil, nil, "policy", "lint", "--in-cluster"); got.code != exitError || !strings.Contains(got.stderr, "--in-cluster works in a pod only") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		server := httptest.NewServer(fleetServer(t))
		server.Close()
		got := flowaudit(t, nil, nil, "policy", "lint", "--kubeconfig", writeKubeconfig(t, server.URL))
		if got.code != exitError || !strings.Contains(got.stderr, "connection refused: is "+server.URL+" up, and does the current context of ") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("an answer that takes too long", func(t *testing.T) {
		s := fleetServer(t)
		s.hangs = true
		if got := explain(t, s, "--timeout", "10ms"); got.code != exitError || !strings.Contains(got.stderr, "within 10ms: raise --timeout, or choose another --context") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no collector", func(t *testing.T) {
		got := flowaudit(t, nil, nil, "policy", "lint", "--server", "unix:/nonexistent/c.sock")
		const want = "start flowaudit-collector, or name it with --server; or give the objects in files by --manifests, or an API server by --kubeconfig\n"
		if got.code != exitError || !strings.HasPrefix(got.stderr, "flowaudit: connect to the collector at unix:/nonexistent/c.sock: ") || !strings.HasSuffix(got.stderr, want) {
			t.Errorf("%+v", got)
		}
	})
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"a collector without a cluster": {status.Error(codes.FailedPrecondition, "the collector knows no cluster"), ": the collector knows no cluster\n"},
		"an old collector":              {status.Error(codes.Unimplemented, "unknown method Objects"), "it is older than this flowaudit devel\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := flowaudit(t, &collector{err: c.err}, nil, "policy", "lint"); got.code != exitError || !strings.HasSuffix(got.stderr, c.want) {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
	t.Run("what the collector does not know", func(t *testing.T) {
		c := fleetCollector(t)
		c.limits = []string{"the API server is away"}
		if got := flowaudit(t, c, nil, "policy", "matrix"); got.code != exitOK || got.stderr != "warning: the API server is away\n" {
			t.Errorf("%+v", got)
		}
	})
}

func TestContextsComplete(t *testing.T) {
	env := map[string]string{"KUBECONFIG": writeKubeconfig(t, "http://api.test")}
	if got := flowaudit(t, nil, env, "__complete", "policy", "lint", "--context", ""); got.stdout != "old\ntest\n:4\n" {
		t.Errorf("%+v", got)
	}
}
