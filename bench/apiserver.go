package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// apiServer answers an agent's lists as an API server does, in Protocol
// Buffers, and tells no change.
type apiServer struct {
	server     *http.Server
	kubeconfig string
	encode     *protobuf.Serializer
	lists      map[string]runtime.Object // by resource
}

// startAPIServer serves a node and its pods on the loopback of a namespace.
func startAPIServer(ns *netlab.Namespace, dir string, pods int) (*apiServer, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	a := &apiServer{
		encode: protobuf.NewSerializer(scheme, scheme), kubeconfig: filepath.Join(dir, "kubeconfig"),
		lists: map[string]runtime.Object{"nodes": oneNode(), "pods": manyPods(pods)},
	}
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen as an API server: %w", err)
	}
	go func() { _ = a.server.Serve(l) }() // ends with Close
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "http://%s"}}]
contexts: [{name: bench, context: {cluster: bench}}]
current-context: bench
`, l.Addr())
	return a, os.WriteFile(a.kubeconfig, []byte(config), 0o600)
}

// ServeHTTP implements http.Handler.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	list := a.lists[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
	watch, whole := r.URL.Query().Get("watch") != "", r.URL.Query().Get("sendInitialEvents") != ""
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
	switch {
	case list == nil:
		http.NotFound(w, r)
	case whole: // as a server before 1.34 answers
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case watch:
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
		w.WriteHeader(http.StatusOK)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		<-r.Context().Done()
	default:
		_ = a.encode.Encode(list, w) // an agent that went is told by its own end
	}
}

func oneNode() *corev1.NodeList {
	return &corev1.NodeList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
		Items: []corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"more": strings.Repeat("x", 12_000)}},
			Spec:       corev1.NodeSpec{PodCIDR: "10.200.0.0/24"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}}},
		}},
	}
}

// manyPods are of a common size, 5.7 KB, and have the addresses that talk.
func manyPods(n int) *corev1.PodList {
	l := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
	start := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	controller := true
	for i := range n {
		name, ip := fmt.Sprintf("service-%d-%08x-%05x", i/5, i/5, i), netip.AddrFrom4([4]byte{10, 200, 0, byte(i)}).String()
		l.Items = append(l.Items, corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: fmt.Sprintf("team-%d", i%20), Name: name, UID: types.UID(name), CreationTimestamp: start,
				Labels: map[string]string{
					"app.kubernetes.io/name": name[:len(name)-6], "app.kubernetes.io/version": "1.2.3", "team": fmt.Sprint(i % 20), "pod-template-hash": fmt.Sprintf("%08x", i/5),
				},
				Annotations:     map[string]string{"more": strings.Repeat("x", 4_900)},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name[:len(name)-6], Controller: &controller}},
			},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{
				Name: "main", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}},
			}}},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, StartTime: &start, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: start}}}},
			},
		})
	}
	return l
}
