package cluster

import (
	"context"
	"errors"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readiness plays a readiness probe that runs a program which dials the
// address of its last argument: the pod is ready while that works.
type readiness struct {
	k      *kubelet
	pod    *Pod
	target string
	cancel context.CancelFunc
	done   chan struct{}
}

// readyEvery is how often it dials.
const readyEvery = 300 * time.Millisecond

// dials gives the address that a pod's readiness probe dials; empty if none does.
func dials(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		if p := c.ReadinessProbe; p != nil && p.Exec != nil && len(p.Exec.Command) > 0 {
			return p.Exec.Command[len(p.Exec.Command)-1]
		}
	}
	return ""
}

func (k *kubelet) probe(p *Pod, target string) *readiness {
	ctx, cancel := context.WithCancel(context.Background())
	r := &readiness{k: k, pod: p, target: target, cancel: cancel, done: make(chan struct{})}
	go r.run(ctx)
	return r
}

// Close ends the probe.
func (r *readiness) Close() error {
	r.cancel()
	<-r.done
	return nil
}

func (r *readiness) run(ctx context.Context) {
	defer close(r.done)
	ticker := time.NewTicker(readyEvery)
	defer ticker.Stop()
	told := corev1.ConditionFalse // as running says
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := corev1.ConditionFalse
		if r.passes(ctx) {
			now = corev1.ConditionTrue
		}
		if now != told && r.tell(ctx, now) == nil {
			told = now
		}
	}
}

func (r *readiness) passes(ctx context.Context) bool {
	return r.pod.Do(func() error {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp", r.target)
		if err != nil {
			return err
		}
		return c.Close()
	}) == nil
}

func (r *readiness) tell(ctx context.Context, ready corev1.ConditionStatus) error {
	pods := r.k.p.client.CoreV1().Pods(r.pod.Key.Namespace)
	pod, err := pods.Get(ctx, r.pod.Key.Name, metav1.GetOptions{})
	switch {
	case err != nil:
		return err
	case pod.UID != r.pod.UID:
		return nil // it is gone, and so is this soon
	case pod.Status.Phase != corev1.PodRunning:
		return errors.New("it is not told to run yet")
	}
	setReady(&pod.Status, ready)
	_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// setReady sets what a readiness probe decides.
func setReady(s *corev1.PodStatus, ready corev1.ConditionStatus) {
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			c.Status, c.LastTransitionTime = ready, metav1.Now()
		}
	}
	for i := range s.ContainerStatuses {
		s.ContainerStatuses[i].Ready = ready == corev1.ConditionTrue
	}
}
