package kube

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The synthetic cluster: its sizes are those of a large one.
const (
	manyNodes    = 5_000
	manyPods     = 150_000
	manyServices = 10_000
)

var epoch = time.Unix(1_700_000_000, 0)

// syntheticPod is pod i of a cluster with 30 pods a node and 15 a Deployment,
// with the labels and ports that pods commonly have.
func syntheticPod(i int) *corev1.Pod {
	app := i / 15
	namespace, name := fmt.Sprintf("team-%d", app%300), fmt.Sprintf("service-%d", app)
	hash := fmt.Sprintf("%x", uint32(app)*2654435761)
	controller := true
	start := metav1.NewTime(epoch)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprintf("%s-%s-%05x", name, hash, i), UID: types.UID(fmt.Sprintf("%08x-1111-2222-3333-444444444444", i)),
			CreationTimestamp: start,
			Labels: map[string]string{
				"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": fmt.Sprintf("product-%d", app%40), "app.kubernetes.io/version": "1.2.3",
				"team": namespace, "pod-template-hash": hash,
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name + "-" + hash, Controller: &controller}},
		},
		Spec: corev1.PodSpec{
			NodeName:   fmt.Sprintf("node-%d", i/30),
			Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &start, PodIP: syntheticAddr(i).String(), PodIPs: []corev1.PodIP{{IP: syntheticAddr(i).String()}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: start}}}},
		},
	}
}

// syntheticAddr is in the /24 of the pod's node.
func syntheticAddr(i int) netip.Addr {
	node := i / 30
	return netip.AddrFrom4([4]byte{10, byte(node >> 8), byte(node), byte(2 + i%30)})
}

func syntheticService(i int) *corev1.Service {
	ip := netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)}).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%300), Name: fmt.Sprintf("service-%d", i)},
		Spec: corev1.ServiceSpec{
			ClusterIP: ip, ClusterIPs: []string{ip}, Selector: map[string]string{"app.kubernetes.io/name": fmt.Sprintf("service-%d", i)},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
}

func syntheticNode(i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i)},
		Spec:       corev1.NodeSpec{PodCIDR: netip.PrefixFrom(syntheticAddr(i*30), 24).Masked().String()},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}).String()},
		}},
	}
}

func live(at time.Time) moment { return moment{now: at.UnixNano(), asOf: at.UnixNano()} }

func starting(at time.Time) moment {
	m := live(at)
	m.first = true
	return m
}

// fill puts the synthetic cluster into an index, as a first list would.
func fill(x *Index) {
	m := starting(epoch.Add(time.Hour))
	for i := range 300 {
		x.setNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%d", i), Labels: map[string]string{"env": "prod"}}}, m)
	}
	for i := range manyNodes {
		x.setNode(syntheticNode(i), m)
	}
	for i := range manyServices {
		x.setService(syntheticService(i), m)
	}
	for i := range manyPods {
		x.setPod(factsOf(syntheticPod(i)), m)
	}
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		fill(NewIndex())
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/build")
}

func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x := NewIndex()
	fill(x)
	runtime.GC()
	runtime.GC() // the second one lets go of interned strings
	runtime.ReadMemStats(&after)
	for b.Loop() {
		x.Version()
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/manyPods, "B/pod")
	runtime.KeepAlive(x)
}

func BenchmarkLookup(b *testing.B) {
	x := NewIndex()
	fill(x)
	at := epoch.Add(2 * time.Hour)
	addrs := make([]netip.Addr, 1<<16)
	for i := range addrs {
		addrs[i] = syntheticAddr(i * 7919 % manyPods)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		x.Endpoint(addrs[i%len(addrs)], at)
		i++
	}
}

func BenchmarkLookupOutside(b *testing.B) {
	x := NewIndex()
	fill(x)
	at, a := epoch.Add(2*time.Hour), netip.MustParseAddr("203.0.113.7")
	b.ReportAllocs()
	for b.Loop() {
		x.Endpoint(a, at)
	}
}

func BenchmarkHolder(b *testing.B) {
	x := NewIndex()
	fill(x)
	at := epoch.Add(2 * time.Hour)
	addrs := make([]netip.Addr, 1<<16)
	for i := range addrs {
		addrs[i] = syntheticAddr(i * 7919 % manyPods)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		x.Holder(addrs[i%len(addrs)], at, at)
		i++
	}
}

// BenchmarkApply replaces one pod by another with its address: two changes.
func BenchmarkApply(b *testing.B) {
	x := NewIndex()
	fill(x)
	at := epoch.Add(2 * time.Hour)
	pods := make([]*corev1.Pod, 1<<12)
	for i := range pods {
		pods[i] = syntheticPod(i * 31)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		p := pods[n%len(pods)]
		x.deletePod(podKey{p.Namespace, p.Name}, live(at))
		p.Name = fmt.Sprintf("%s-%d", p.Name[:10], n)
		x.setPod(factsOf(p), live(at))
		at = at.Add(5 * time.Millisecond)
		n++
	}
}
