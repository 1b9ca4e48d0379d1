package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// fakeAPI answers lists and watches over pipes, so that a test's time is its own.
type fakeAPI struct {
	mu        sync.Mutex
	version   int
	oldest    int // from where a watch can go on
	objects   map[string]map[string]json.RawMessage
	log       []fakeEvent
	changed   chan struct{} // closed and replaced at each change
	forbidden map[string]bool
	down      bool
	ahead     time.Duration // of its clock
	groups    []string      // API groups beside the usual ones, of version v1
	conns     []net.Conn
	requests  []request
	accept    chan net.Conn
	closed    chan struct{}
	server    *http.Server
}

type fakeEvent struct {
	resource, kind string
	version        int
	object         json.RawMessage
}

// request is what the API server's authorizer decides on.
type request struct{ verb, group, resource, field string }

func newFakeAPI(t *testing.T) *fakeAPI {
	a := &fakeAPI{
		objects: make(map[string]map[string]json.RawMessage), changed: make(chan struct{}), forbidden: make(map[string]bool),
		accept: make(chan net.Conn), closed: make(chan struct{}), version: 1,
	}
	a.server = &http.Server{Handler: a}
	done := make(chan struct{})
	go func() { _ = a.server.Serve(pipeListener{a.accept, a.closed}); close(done) }()
	t.Cleanup(func() {
		a.stop()
		close(a.closed)
		<-done
		_ = a.server.Close()
	})
	return a
}

func (a *fakeAPI) config() *rest.Config {
	return &rest.Config{Host: "http://api.test", QPS: -1, WarningHandler: rest.NoWarnings{}, Dial: a.dial}
}

func (a *fakeAPI) dial(context.Context, string, string) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	client, server := net.Pipe()
	a.conns = append(a.conns, server)
	go func() {
		select {
		case a.accept <- server:
		case <-a.closed:
		}
	}()
	return client, nil
}

// stop makes the server refuse connections, and ends those that are open.
func (a *fakeAPI) stop() {
	a.mu.Lock()
	a.down = true
	conns := a.conns
	a.conns = nil
	a.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// start ends a stop. A server that was started anew cannot tell what happened
// before: watches from then are refused.
func (a *fakeAPI) start(anew bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = false
	if anew {
		a.oldest, a.log = a.version, nil
	}
}

// put creates or changes an object.
func (a *fakeAPI) put(resource string, o metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	if a.objects[resource] == nil {
		a.objects[resource] = make(map[string]json.RawMessage)
	}
	key, kind := o.GetNamespace()+"/"+o.GetName(), "ADDED"
	if _, ok := a.objects[resource][key]; ok {
		kind = "MODIFIED"
	}
	a.objects[resource][key] = raw
	a.tell(fakeEvent{resource, kind, a.version, raw})
}

func (a *fakeAPI) remove(resource string, o metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	delete(a.objects[resource], o.GetNamespace()+"/"+o.GetName())
	a.tell(fakeEvent{resource, "DELETED", a.version, raw})
}

func (a *fakeAPI) tell(e fakeEvent) {
	a.log = append(a.log, e)
	close(a.changed)
	a.changed = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	w.Header().Set("Date", time.Now().Add(a.ahead).UTC().Format(http.TimeFormat))
	groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, g := range a.groups {
		groups.Groups = append(groups.Groups, metav1.APIGroup{Name: g, PreferredVersion: metav1.GroupVersionForDiscovery{GroupVersion: g + "/v1", Version: "v1"}})
	}
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) < 3 {
		_ = json.NewEncoder(w).Encode(groups)
		return
	}
	q := r.URL.Query()
	resource, group, version := parts[len(parts)-1], "", parts[1]
	if parts[0] == "apis" {
		group, version = parts[1], parts[2]
	}
	req := request{"list", group, resource, q.Get("fieldSelector")}
	if q.Get("watch") != "" {
		req.verb = "watch"
	}
	a.mu.Lock()
	a.requests = append(a.requests, req)
	refused := a.forbidden[resource]
	a.mu.Unlock()
	if refused {
		fail(w, http.StatusForbidden, "Forbidden", fmt.Sprintf("%s is forbidden: User \"x\" cannot %s resource %q", resource, req.verb, resource))
		return
	}
	apiVersion := strings.TrimPrefix(group+"/"+version, "/")
	if req.verb == "list" {
		a.list(w, resource, apiVersion)
		return
	}
	a.watch(w, r, resource)
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: metav1.StatusReason(reason), Message: message,
	})
}

func (a *fakeAPI) list(w io.Writer, resource, apiVersion string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kind := map[string]string{
		"pods": "PodList", "nodes": "NodeList", "namespaces": "NamespaceList", "services": "ServiceList", "endpointslices": "EndpointSliceList",
		"networkpolicies": "NetworkPolicyList", "daemonsets": "DaemonSetList", "cronjobs": "CronJobList", "replicasets": "PartialObjectMetadataList", "jobs": "PartialObjectMetadataList",
	}[resource]
	if strings.HasPrefix(kind, "Partial") {
		apiVersion = "meta.k8s.io/v1"
	}
	items := slices.Collect(maps.Values(a.objects[resource]))
	if items == nil {
		items = []json.RawMessage{}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kind, "apiVersion": apiVersion, "metadata": map[string]string{"resourceVersion": strconv.Itoa(a.version)}, "items": items,
	})
}

func (a *fakeAPI) watch(w http.ResponseWriter, r *http.Request, resource string) {
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	send := func(kind string, object any) bool {
		b, err := json.Marshal(map[string]any{"type": kind, "object": object})
		if err != nil {
			panic(err)
		}
		_, err = w.Write(append(b, '\n'))
		w.(http.Flusher).Flush()
		return err == nil
	}
	a.mu.Lock()
	old := from < a.oldest
	if q.Get("sendInitialEvents") == "true" {
		var items []json.RawMessage
		items, from, old = slices.Collect(maps.Values(a.objects[resource])), a.version, false
		a.mu.Unlock()
		for _, o := range items {
			send("ADDED", o)
		}
		send("BOOKMARK", bookmark(resource, from))
	} else {
		a.mu.Unlock()
	}
	if old {
		fail(w, http.StatusGone, "Expired", "too old resource version")
		return
	}
	w.(http.Flusher).Flush()
	for {
		a.mu.Lock()
		var news []fakeEvent
		for _, e := range a.log {
			if e.version > from && e.resource == resource {
				news = append(news, e)
			}
		}
		from = a.version
		changed := a.changed
		a.mu.Unlock()
		for _, e := range news {
			if !send(e.kind, e.object) {
				return
			}
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func bookmark(resource string, version int) map[string]any {
	kind, apiVersion := map[string]string{
		"pods": "Pod", "nodes": "Node", "namespaces": "Namespace", "services": "Service", "endpointslices": "EndpointSlice",
		"networkpolicies": "NetworkPolicy", "replicasets": "PartialObjectMetadata", "jobs": "PartialObjectMetadata",
	}[resource], "v1"
	switch kind {
	case "EndpointSlice":
		apiVersion = "discovery.k8s.io/v1"
	case "NetworkPolicy":
		apiVersion = "networking.k8s.io/v1"
	case "PartialObjectMetadata":
		apiVersion = "meta.k8s.io/v1"
	}
	return map[string]any{"kind": kind, "apiVersion": apiVersion, "metadata": map[string]any{
		"resourceVersion": strconv.Itoa(version), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}}
}

type pipeListener struct {
	accept chan net.Conn
	closed chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (pipeListener) Close() error   { return nil }
func (pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// watched is a watch of a fake server that runs.
type watched struct {
	*Watch
	api  *fakeAPI
	mu   sync.Mutex
	gaps []flowGap
	stop func()
}

var quiet = slog.New(slog.DiscardHandler)

func watching(t *testing.T, api *fakeAPI, node string, o Options, more ...func(*WatchOptions)) *watched {
	t.Helper()
	o.Partial = node != ""
	return watchingWith(t, api, node, New(o), more...)
}

func watchingWith(t *testing.T, api *fakeAPI, node string, x *Index, more ...func(*WatchOptions)) *watched {
	t.Helper()
	r := &watched{api: api}
	var err error
	options := WatchOptions{Node: node, Index: x, Lost: r.lost, Log: quiet}
	for _, set := range more {
		set(&options)
	}
	r.Watch, err = newWatch(options, api.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
		close(done)
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		r.client.CloseIdleConnections()
	})
	t.Cleanup(r.stop)
	return r
}

func ready(p *corev1.Pod, ip string, at time.Time) *corev1.Pod {
	start := metav1.NewTime(at.Truncate(time.Second))
	p.CreationTimestamp = start
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &start, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: start}}}},
	}
	return p
}
