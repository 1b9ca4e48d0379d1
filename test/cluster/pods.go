package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flowaudit/flowaudit/test/netlab"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// Unmanaged is a label that keeps a pod from getting a namespace and a status:
// the test that made it plays its kubelet.
const Unmanaged = "flowaudit.test/unmanaged"

// Pod is a pod that runs. Its containers' ports are served by echo servers.
type Pod struct {
	*netlab.Namespace // a hostNetwork pod's is the node's
	IPv4, IPv6        netip.Addr
	Key               types.NamespacedName
	UID               types.UID
	Node              *Node

	own     *netlab.Pod // nil with hostNetwork
	host    byte        // of its addresses
	servers []io.Closer
}

// kubelet plays kubelet and network plugin of one node.
type kubelet struct {
	node *Node
	p    *plane

	mu   sync.Mutex
	pods map[types.UID]*Pod
}

// sync makes the node like the pod wants it. A nil pod is one that is gone.
func (k *kubelet) sync(ctx context.Context, uid types.UID, pod *corev1.Pod) error {
	switch {
	case pod == nil:
		return k.down(uid)
	case pod.DeletionTimestamp != nil:
		if err := k.down(uid); err != nil {
			return err
		}
		return k.forget(ctx, pod)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return k.down(uid)
	}
	p, err := k.up(pod)
	if err != nil {
		return err
	}
	return k.report(ctx, pod, p)
}

// up gives the pod its namespace, addresses and servers.
func (k *kubelet) up(pod *corev1.Pod) (*Pod, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.pods[pod.UID]; p != nil {
		return p, nil
	}
	p := &Pod{Key: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, UID: pod.UID, Node: k.node}
	if pod.Spec.HostNetwork {
		p.Namespace, p.IPv4, p.IPv6 = k.node.Namespace, k.node.IPv4, k.node.IPv6
	} else if err := k.connect(p); err != nil {
		return nil, err
	}
	k.pods[pod.UID] = p
	if target := dials(pod); target != "" {
		p.servers = append(p.servers, k.probe(p, target))
	}
	return p, p.serve(pod)
}

// connect makes a namespace with the lowest free addresses, so that freed ones
// are used again at once.
func (k *kubelet) connect(p *Pod) error {
	const first, last = 10, 250
	taken := make(map[byte]bool, len(k.pods))
	for _, other := range k.pods {
		taken[other.host] = true
	}
	for p.host = first; taken[p.host]; p.host++ {
		if p.host == last {
			return fmt.Errorf("connect pod %s: no address is left on %s", p.Key, k.node.Name)
		}
	}
	p.IPv4, p.IPv6 = k.node.podAddrs(p.host)
	var err error
	p.own, err = k.node.AddPod(fmt.Sprintf("%.8s", p.UID), p.IPv4, p.IPv6)
	if err != nil {
		return fmt.Errorf("connect pod %s: %w", p.Key, err)
	}
	p.Namespace = p.own.Namespace
	return nil
}

func (p *Pod) serve(pod *corev1.Pod) error {
	var ports []uint16
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			if n := uint16(port.ContainerPort); !slices.Contains(ports, n) { // a server echoes TCP and UDP
				ports = append(ports, n)
			}
		}
	}
	for _, n := range ports {
		s, err := traffic.Serve(p, n)
		if err != nil {
			return fmt.Errorf("run pod %s: %w", p.Key, err)
		}
		p.servers = append(p.servers, s)
	}
	return nil
}

// report writes the status of a running pod.
func (k *kubelet) report(ctx context.Context, pod *corev1.Pod, p *Pod) error {
	if pod.Status.Phase == corev1.PodRunning {
		return nil
	}
	pod = pod.DeepCopy()
	pod.Status = running(pod, p)
	if dials(pod) != "" {
		setReady(&pod.Status, corev1.ConditionFalse)
	}
	_, err := k.p.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("report pod %s: %w", p.Key, err)
	}
	return nil
}

func running(pod *corev1.Pod, p *Pod) corev1.PodStatus {
	now := metav1.Now()
	s := corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &now,
		HostIP: p.Node.IPv4.String(), HostIPs: []corev1.HostIP{{IP: p.Node.IPv4.String()}, {IP: p.Node.IPv6.String()}},
		PodIP: p.IPv4.String(), PodIPs: []corev1.PodIP{{IP: p.IPv4.String()}, {IP: p.IPv6.String()}},
	}
	for _, c := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		s.Conditions = append(s.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	started := true
	for _, c := range pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return s
}

// Complete ends a pod's containers with success, as those of a Job end. The
// object stays, with the address that it had.
func (c *Cluster) Complete(ctx context.Context, p *Pod) error {
	pods := c.Client.CoreV1().Pods(p.Key.Namespace)
	pod, err := pods.Get(ctx, p.Key.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("complete pod %s: %w", p.Key, err)
	}
	pod.Status.Phase = corev1.PodSucceeded
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		s.Ready = false
		s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: s.State.Running.StartedAt, FinishedAt: metav1.Now()}}
	}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("complete pod %s: %w", p.Key, err)
	}
	return until(ctx, fmt.Sprintf("the end of pod %s", p.Key), func(context.Context) error {
		if c.dispatch.kubelets[p.Node.Name].get(p.UID) != nil {
			return errors.New("it runs")
		}
		return nil
	})
}

// down takes a pod's servers, namespace and addresses away.
func (k *kubelet) down(uid types.UID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[uid]
	if p == nil {
		return nil
	}
	delete(k.pods, uid)
	var errs []error
	for _, s := range p.servers {
		errs = append(errs, s.Close())
	}
	if p.own != nil {
		errs = append(errs, k.node.RemovePod(p.own))
	}
	return errors.Join(errs...)
}

// forget ends a deletion that waits for the kubelet.
func (k *kubelet) forget(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	err := k.p.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // gone, or another has its name
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func (k *kubelet) get(uid types.UID) *Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pods[uid]
}
