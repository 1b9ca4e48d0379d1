package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// apiServer is as much of an API server as leases and events need.
type apiServer struct {
	*httptest.Server
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
	events  map[string]corev1.Event
	refuse  int // status of the next events
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{events: make(map[string]corev1.Event)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) config() *rest.Config {
	return &rest.Config{Host: s.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	fail := func(status int, reason metav1.StatusReason) {
		answer(status, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(status), Reason: reason})
	}
	switch {
	case strings.HasSuffix(r.URL.Path, "/leases/alerts") && r.Method == http.MethodGet:
		if s.lease == nil {
			fail(http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
		answer(http.StatusOK, s.lease)
	case strings.Contains(r.URL.Path, "/leases"):
		var lease coordinationv1.Lease
		_ = json.NewDecoder(r.Body).Decode(&lease)
		if r.Method == http.MethodPost && s.lease != nil || r.Method == http.MethodPut && lease.ResourceVersion != s.lease.ResourceVersion {
			fail(http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		s.version++
		lease.ResourceVersion = fmt.Sprint(s.version)
		s.lease = &lease
		answer(http.StatusOK, lease)
	case strings.HasSuffix(r.URL.Path, "/pods"):
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		if name, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name="); name != "gone" {
			list.Items = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-of-" + "pod"}}}
		}
		answer(http.StatusOK, list)
	case strings.HasSuffix(r.URL.Path, "/networkpolicies"):
		answer(http.StatusOK, networkingv1.NetworkPolicyList{
			TypeMeta: metav1.TypeMeta{Kind: "NetworkPolicyList", APIVersion: "networking.k8s.io/v1"},
			Items:    []networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-policy", UID: "uid-of-policy"}}},
		})
	case strings.HasSuffix(r.URL.Path, "/events"):
		var e corev1.Event
		_ = json.NewDecoder(r.Body).Decode(&e)
		switch _, known := s.events[e.Name]; {
		case s.refuse != 0:
			fail(s.refuse, map[int]metav1.StatusReason{http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusNotFound: metav1.StatusReasonNotFound}[s.refuse])
		case known:
			fail(http.StatusConflict, metav1.StatusReasonAlreadyExists)
		default:
			s.events[e.Name] = e
			answer(http.StatusCreated, e)
		}
	default:
		fail(http.StatusNotFound, metav1.StatusReasonNotFound)
	}
}

func TestEventsOnPodsAndPolicies(t *testing.T) {
	s := newAPIServer(t)
	e, err := newEvents(s.config(), "collector-0")
	if err != nil {
		t.Fatal(err)
	}
	a := *alert.Sample()
	a.From.Pod = "gone"
	over := a
	over.State = alert.Resolved
	for range 2 { // the second time, nothing is there to do
		if err := e.Send(t.Context(), []alert.Alert{a, over}); err != nil {
			t.Fatal(err)
		}
	}
	about := make(map[string]corev1.Event)
	for _, event := range s.events {
		about[event.InvolvedObject.Kind+" "+event.InvolvedObject.Name] = event
	}
	if len(s.events) != 2 || about["Pod db-0"].InvolvedObject.UID != "uid-of-pod" || about["NetworkPolicy db-policy"].InvolvedObject.UID != "uid-of-policy" {
		t.Errorf("%+v", s.events)
	}
	got := about["Pod db-0"]
	if got.Reason != "FirstDenied" || got.Type != corev1.EventTypeWarning || !strings.Contains(got.Message, a.Summary) || !strings.Contains(got.Message, a.NearestMiss) || got.Namespace != "shop" {
		t.Errorf("%+v", got)
	}
	s.refuse = http.StatusForbidden
	a.Started = a.Started.Add(time.Hour)
	if err := e.Send(t.Context(), []alert.Alert{a}); err == nil || !strings.Contains(err.Error(), "create event on Pod shop/db-0") {
		t.Errorf("%v, want the object that is refused", err)
	}
	s.refuse = http.StatusNotFound
	a.Summary = strings.Repeat("ä", 2000)
	if err := e.Send(t.Context(), []alert.Alert{a}); err != nil {
		t.Errorf("%v, though the namespace is only gone", err)
	}
}

// Of two collectors one leads; when it ends, the other one does.
func TestOneCollectorLeads(t *testing.T) {
	s := newAPIServer(t)
	type leader struct {
		name  string
		leads bool
	}
	changes := make(chan leader, 10)
	begin := func(name string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- elect(ctx, s.config(), "flowaudit/alerts", name, func(leads bool) { changes <- leader{name, leads} }, slog.New(slog.DiscardHandler))
		}()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	next := func(what string) leader {
		t.Helper()
		select {
		case l := <-changes:
			return l
		case <-time.After(time.Minute):
			t.Fatalf("waited in vain for %s", what)
			return leader{}
		}
	}
	stopA := begin("a")
	if l := next("the first"); l != (leader{"a", true}) {
		t.Fatalf("%+v", l)
	}
	stopB := begin("b")
	defer stopB()
	stopA()
	if l := next("the end of the first"); l != (leader{"a", false}) {
		t.Errorf("%+v", l)
	}
	for l := next("the second"); l != (leader{"b", true}); l = next("the second") {
		if l.leads { // one that never led says so, too, when it ends
			t.Errorf("%+v leads", l)
		}
	}
}
