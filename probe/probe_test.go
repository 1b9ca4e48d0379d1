package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// cluster is an API server with kubelets and a network plugin, as far as a
// probe sees them.
type cluster struct {
	t          *testing.T
	nodes      []corev1.Node
	namespaces map[string]*corev1.Namespace
	pods       []*corev1.Pod
	policies   map[string]time.Time // of the probe, since when
	// enforces reports whether a policy of a side has an effect on a node.
	enforces func(side, node string) bool
	lag      time.Duration // until it has
	sticks   bool          // and then it goes on
	stuck    map[string]bool
	cut      [2]string        // there is no way from the first node to the second
	pending  string           // why containers do not start
	forbid   string           // a resource that may not be made
	on       func(string)     // is told each request
	said     *strings.Builder // what the probe says
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	c := &cluster{
		t: t, namespaces: make(map[string]*corev1.Namespace), policies: make(map[string]time.Time), stuck: make(map[string]bool),
		enforces: func(string, string) bool { return true }, lag: 2 * time.Second, said: &strings.Builder{},
	}
	for _, n := range nodes {
		c.nodes = append(c.nodes, corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		})
	}
	return c
}

// client makes a client whose requests the cluster answers itself.
func (c *cluster) client(v schema.GroupVersion, path string) rest.Interface {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			c.t.Fatal(err)
		}
	}
	client, err := rest.RESTClientForConfigAndClient(&rest.Config{
		Host: "http://cluster", APIPath: path, QPS: -1,
		ContentConfig: rest.ContentConfig{GroupVersion: &v, NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion()},
	}, &http.Client{Transport: c})
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

func (c *cluster) options() Options {
	return Options{
		Core: c.client(schema.GroupVersion{Version: "v1"}, "/api"), Networking: c.client(schema.GroupVersion{Group: "networking.k8s.io", Version: "v1"}, "/apis"),
		Image: "agnhost", Timeout: time.Minute, Say: func(format string, args ...any) { fmt.Fprintf(c.said, format+"\n", args...) },
	}
}

// RoundTrip answers a request.
func (c *cluster) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	parts := strings.Split(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/apis/networking.k8s.io/v1/"), "/")
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	resource, name := parts[0], strings.Join(parts[1:], "")
	if c.on != nil {
		c.on(r.Method + " " + resource)
	}
	if r.Method == http.MethodPost && resource == c.forbid {
		return answer(http.StatusForbidden, &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: 403, Message: "no"})
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body) // what is missing does not decode
	}
	return c.answer(r.Method, resource, name, body)
}

func (c *cluster) answer(method, resource, name string, body []byte) (*http.Response, error) {
	ok := &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}
	gone := &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: 404}
	switch method + " " + resource {
	case "GET nodes":
		return answer(200, &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, Items: c.nodes})
	case "GET namespaces":
		if name != "" {
			if n := c.namespaces[name]; n != nil {
				return answer(200, n)
			}
			return answer(404, gone)
		}
		list := &corev1.NamespaceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NamespaceList"}}
		for _, n := range c.namespaces {
			list.Items = append(list.Items, *n)
		}
		return answer(200, list)
	case "POST namespaces":
		var n corev1.Namespace
		c.read(body, &n)
		n.CreationTimestamp = metav1.Now()
		c.namespaces[n.Name] = &n
		return answer(201, &n)
	case "DELETE namespaces":
		delete(c.namespaces, name)
		c.pods, c.policies = nil, make(map[string]time.Time)
		return answer(200, ok)
	case "POST pods":
		var p corev1.Pod
		c.read(body, &p)
		c.pods = append(c.pods, &p)
		return answer(201, &p)
	case "GET pods":
		list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		for i, p := range c.pods {
			list.Items = append(list.Items, *c.status(i, p))
		}
		return answer(200, list)
	case "POST networkpolicies":
		var p networkingv1.NetworkPolicy
		c.read(body, &p)
		c.policies[strings.ToLower(string(p.Spec.PolicyTypes[0]))] = time.Now()
		return answer(201, &p)
	case "DELETE networkpolicies":
		delete(c.policies, strings.TrimPrefix(name, "deny-"))
		return answer(200, ok)
	}
	c.t.Errorf("asked %s %s", method, resource)
	return answer(404, gone)
}

func (c *cluster) read(body []byte, object any) {
	if err := json.Unmarshal(body, object); err != nil {
		c.t.Errorf("a body that is no object: %v", err)
	}
}

func answer(code int, object any) (*http.Response, error) {
	b, err := json.Marshal(object)
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b))}, err
}

// status is a pod as its kubelet tells of it.
func (c *cluster) status(i int, p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	if c.pending != "" {
		p.Status.Phase = corev1.PodPending
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: c.pending}}}}
		return p
	}
	p.Status.Phase, p.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.1.0.%d", i+1)
	ready := corev1.ConditionTrue
	if probe := p.Spec.Containers[0].ReadinessProbe; probe != nil && !c.passes(p.Name, p.Spec.NodeName, probe.Exec.Command) {
		ready = corev1.ConditionFalse
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	return p
}

// passes reports whether a client's connection gets through.
func (c *cluster) passes(name, node string, command []string) bool {
	target := strings.TrimSuffix(command[len(command)-1], ":8080")
	server := slices.IndexFunc(c.pods, func(p *corev1.Pod) bool { return false })
	for i := range c.pods {
		if fmt.Sprintf("10.1.0.%d", i+1) == target {
			server = i
		}
	}
	if server < 0 {
		c.t.Errorf("%s dials %s, where nobody is", name, target)
		return false
	}
	to := c.pods[server].Spec.NodeName
	if c.cut == [2]string{node, to} || c.stuck[name] {
		return false
	}
	for side, since := range c.policies {
		at := to
		if side == Egress {
			at = node
		}
		if time.Since(since) >= c.lag && c.enforces(side, at) {
			c.stuck[name] = c.sticks
			return false
		}
	}
	return true
}

// show is what results say.
func show(results []Result) (all []string) {
	for _, r := range results {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s>%s %s %s %s", r.Client, r.Server, r.Side, r.Node, r.State)))
	}
	slices.Sort(all)
	return all
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes []string
		set   func(*cluster)
		want  []string
	}{
		{"enforced everywhere", []string{"a", "b"}, func(*cluster) {}, []string{
			"a>a egress a enforced", "a>a ingress a enforced", "a>b egress a enforced", "a>b ingress b enforced",
			"b>a egress b enforced", "b>a ingress a enforced", "b>b egress b enforced", "b>b ingress b enforced",
		}},
		{"one node", []string{"a"}, func(*cluster) {}, []string{"a>a egress a enforced", "a>a ingress a enforced"}},
		{"nobody enforces", []string{"a"}, func(c *cluster) { c.enforces = func(string, string) bool { return false } }, []string{"a>a egress a unenforced", "a>a ingress a unenforced"}},
		{"a node enforces no egress", []string{"a", "b"}, func(c *cluster) { c.enforces = func(side, node string) bool { return side != Egress || node != "b" } }, []string{
			"a>a egress a enforced", "a>a ingress a enforced", "a>b egress a enforced", "a>b ingress b enforced",
			"b>a egress b unenforced", "b>a ingress a enforced", "b>b egress b unenforced", "b>b ingress b enforced",
		}},
		{"later than anybody waits", []string{"a"}, func(c *cluster) { c.lag = 2 * time.Minute }, []string{"a>a egress a unenforced", "a>a ingress a unenforced"}},
		{"no way between two nodes", []string{"a", "b"}, func(c *cluster) { c.cut = [2]string{"a", "b"} }, []string{
			"a>a egress a enforced", "a>a ingress a enforced", "a>b   unreachable",
			"b>a egress b enforced", "b>a ingress a enforced", "b>b egress b enforced", "b>b ingress b enforced",
		}},
		{"refused for other reasons", []string{"a"}, func(c *cluster) { c.sticks = true }, []string{"a>a ingress a stuck"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newCluster(t, c.nodes...)
				c.set(x)
				results, err := Run(t.Context(), x.options())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, show(results)); diff != "" {
					t.Error(diff)
				}
				for _, r := range results {
					if r.Problem() != (r.State != Enforced) || r.State == Enforced && (r.AfterMillis < 2000 || r.AfterMillis > 4000) {
						t.Errorf("%+v, want 2 to 4 s", r)
					}
				}
				if len(x.namespaces) > 0 {
					t.Errorf("left behind: %v", x.namespaces)
				}
			})
		})
	}
}

func TestAProbeThatIsInterruptedRemovesEverything(t *testing.T) {
	for _, at := range []string{"POST namespaces", "POST pods", "GET pods", "POST networkpolicies", "DELETE networkpolicies"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newCluster(t, "a", "b")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				x.on = func(request string) {
					if request == at {
						cancel()
					}
				}
				if _, err := Run(ctx, x.options()); !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
				if len(x.namespaces) > 0 || !strings.Contains(x.said.String(), "removes the namespace flowaudit-probe-") {
					t.Errorf("left behind: %v, said %s", x.namespaces, x.said)
				}
			})
		})
	}
}

func TestWhatCannotBeProbed(t *testing.T) {
	tainted := func(c *cluster) {
		c.nodes[0].Spec.Taints = []corev1.Taint{{Effect: corev1.TaintEffectNoSchedule}}
		c.nodes[1].Spec.Unschedulable = true
	}
	for _, c := range []struct {
		name string
		set  func(*cluster, *Options)
		want string
	}{
		{"no node takes pods", func(c *cluster, _ *Options) { tainted(c) }, "no node is ready and takes pods"},
		{"a node that is not there", func(_ *cluster, o *Options) { o.Nodes = []string{"z"} }, "probe node z"},
		{"an image that is not there", func(c *cluster, _ *Options) { c.pending = "ImagePullBackOff" }, "ImagePullBackOff"},
		{"no rights", func(c *cluster, _ *Options) { c.forbid = "namespaces" }, "needs the rights"},
		{"no rights to make policies", func(c *cluster, _ *Options) { c.forbid = "networkpolicies" }, "needs the rights"},
		{"a timeout of nothing", func(_ *cluster, o *Options) { o.Timeout = 0 }, "want 10s to 10m"},
		{"no image", func(_ *cluster, o *Options) { o.Image = "" }, "the image is empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newCluster(t, "a", "b")
				o := x.options()
				c.set(x, &o)
				if results, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, %v, want %q", results, err, c.want)
				}
				if len(x.namespaces) > 0 {
					t.Errorf("left behind: %v", x.namespaces)
				}
			})
		})
	}
}

func TestNamedNodesAndLeftovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newCluster(t, "a", "b", "c")
		x.nodes[2].Spec.Unschedulable = true // named nodes are taken as they are
		x.namespaces["old"] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "old", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))}}
		x.namespaces["running"] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "running", CreationTimestamp: metav1.Now()}}
		o := x.options()
		o.Nodes = []string{"c"}
		results, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"c>c egress c enforced", "c>c ingress c enforced"}, show(results)); diff != "" {
			t.Error(diff)
		}
		if x.namespaces["old"] != nil || x.namespaces["running"] == nil || len(x.namespaces) != 1 {
			t.Errorf("namespaces left: %v", x.namespaces)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range MaxNodes + 3 {
			names = append(names, fmt.Sprintf("n%02d", i))
		}
		x := newCluster(t, names...)
		results, err := Run(t.Context(), x.options())
		if err != nil || len(results) != MaxNodes*4 || !strings.Contains(x.said.String(), "10 of 13 nodes") {
			t.Errorf("%d results, %v, said %s", len(results), err, x.said)
		}
	})
}

// TestPodsAreRestricted: they run where the restricted Pod Security Standard is enforced.
func TestPodsAreRestricted(t *testing.T) {
	for _, p := range []*corev1.Pod{serverPod("s", "n", "i"), clientPod("c", "n", "i", "fd00::1")} {
		c, s := p.Spec.Containers[0].SecurityContext, p.Spec.SecurityContext
		if *c.AllowPrivilegeEscalation || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) || !*s.RunAsNonRoot || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || p.Spec.HostNetwork {
			t.Errorf("%+v", p.Spec)
		}
	}
	if command := clientPod("c", "n", "i", "fd00::1").Spec.Containers[0].ReadinessProbe.Exec.Command; command[len(command)-1] != "[fd00::1]:8080" {
		t.Errorf("dials %v", command)
	}
}
